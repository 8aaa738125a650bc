"""CLIP (Radford et al. 2021): a text and an image tower; the text tower conditions the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.contracts.errors import TrainingError
from components.contracts.recipe import TextEncoder
from components.models.quiet import quieten


def load_tokenizer(folder: Path) -> Any:
    """The dataset's ``PreTrainedTokenizerFast`` with begin, end and pad tokens, from its folder.

    Raises:
        TrainingError: a special token is missing, or the end token has an id that CLIP reads differently.
    """
    quieten()
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    missing = [n for n in ("bos_token", "eos_token", "pad_token") if getattr(tokenizer, n) is None]
    # transformers' CLIP pools at the largest id instead of at the end token when that has the id 2
    if missing or tokenizer.eos_token_id == 2:
        raise TrainingError(
            f"The tokenizer lacks {', '.join(missing)}" if missing else "The tokenizer's end token has id 2",
            expected="begin, end and pad tokens, the end token with another id than 2",
            remedy="prepare the dataset again",
        )
    return tokenizer


def make_clip(config: TextEncoder, tokenizer: Any, image_size: int) -> Any:
    """A fresh ``CLIPModel`` for square pictures of ``image_size`` pixels in -1..1 and the tokenizer's ids."""
    quieten()
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    tower = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_attention_heads": config.heads,
        "projection_dim": config.width,
        "hidden_act": "gelu",
    }
    text = CLIPTextConfig(
        **tower,
        num_hidden_layers=config.layers,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        **tower, num_hidden_layers=config.image_layers, image_size=image_size, patch_size=config.patch
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.width)
    )


def load_clip(folder: Path) -> Any:
    """A saved ``CLIPModel``, in fp32 and evaluation mode."""
    quieten()
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()


def text_tower(clip: Any) -> Any:
    """The text tower alone as ``CLIPTextModel``, as a diffusion pipeline wants it; weights are copied."""
    from transformers import CLIPTextModel

    tower = CLIPTextModel(clip.config.text_config)
    weights = {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}
    own = tower.state_dict()
    # some releases keep the tower under `text_model.`, some lay it flat
    prefix = "text_model." if all(k.startswith("text_model.") for k in own) else ""
    tower.load_state_dict({prefix + k: v for k, v in weights.items()})
    return tower.eval()


def pad_tokens(rows: list[list[int]], length: int, pad: int, end: int) -> Any:
    """Token rows (begin .. end) as int64 ``[N, length]``, padded, or cut with the end token kept last."""
    import torch

    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    for i, row in enumerate(rows):
        kept = row if len(row) <= length else [*row[: length - 1], end]
        ids[i, : len(kept)] = torch.tensor(kept, dtype=torch.long)
    return ids


def text_states(tower: Any, ids: Any, batch_size: int = 256) -> Any:
    """Last hidden states ``[N, length, width]`` (fp32) of padded ids, as the stock pipeline computes them."""
    import torch

    with torch.inference_mode():
        parts = [tower(input_ids=part)[0].float() for part in ids.split(batch_size)]
    return torch.cat(parts).clone()
