"""Tiny models that look at pictures, saved as their makers would."""

from __future__ import annotations

import json
from pathlib import Path


def save_dinov2(folder: Path, seed: int = 0) -> Path:
    """A DINOv2 of 42 pixels, which its preprocessing says; its config has another size."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.2], "crop_size": {"height": 42, "width": 42}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
