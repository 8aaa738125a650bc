"""The autoencoder: pictures to a small latent grid and back.

AutoencoderKL (Rombach et al. 2022) is trained here or loaded; AutoencoderDC (Chen et al. 2024, "Deep Compression
Autoencoder") is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts.recipe import Autoencoder
from components.models.quiet import quieten

_CERTAIN = -30.0  # log-variance of latents without one: the least that AutoencoderKL knows


@dataclass(frozen=True)
class Grid:
    """What a saved autoencoder makes of a picture, read from its ``config.json``."""

    kind: str  # AutoencoderKL or AutoencoderDC
    factor: int  # pixels of a picture's side to one of the latent's
    channels: int
    scaling: float | None  # factor to unit variance that its makers measured
    shift: float | None  # their mean of the latents

    @classmethod
    def of(cls, folder: Path) -> Grid:
        """Raises ``OSError``, ``ValueError`` or ``KeyError`` where the folder holds no such model."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["_class_name"]
        if kind not in ("AutoencoderKL", "AutoencoderDC"):
            raise ValueError(f"it is a {kind}")
        blocks = config["block_out_channels" if kind == "AutoencoderKL" else "encoder_block_out_channels"]
        factor = 2 ** (len(blocks) - 1)
        return cls(kind, factor, config["latent_channels"], config.get("scaling_factor"), config.get("shift_factor"))


def make_autoencoder(config: Autoencoder, image_size: int) -> Any:
    """A fresh ``AutoencoderKL`` for pictures in -1..1.

    The second convolution of every residual block starts at zero, so that the network starts as a nearly
    linear map and is trained deeper from there (Zhang et al. 2019, "Fixup Initialization").
    """
    quieten()
    import torch
    from diffusers import AutoencoderKL

    blocks = len(config.channels)
    model = AutoencoderKL(
        block_out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=image_size,
        mid_block_add_attention=config.attention,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for name, weight in model.named_parameters():
        if ".conv2." in name:
            torch.nn.init.zeros_(weight)
    return model


def load_autoencoder(folder: Path) -> Any:
    """A saved ``AutoencoderKL`` or ``AutoencoderDC``, in fp32 and evaluation mode."""
    quieten()
    import diffusers

    folder = Path(folder)
    kind = getattr(diffusers, Grid.of(folder).kind)
    return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()


def factor_of(model: Any) -> int:
    """Pixels of a picture's side to one of the latent's."""
    config = model.config
    kl = type(model).__name__ == "AutoencoderKL"
    return int(2 ** (len(config.block_out_channels if kl else config.encoder_block_out_channels) - 1))


def encode_moments(model: Any, pixels: Any) -> tuple[Any, Any]:
    """Mean and log-variance of the latents, each ``[N, channels, h, w]``, of pictures ``[N, 3, H, W]`` in -1..1.

    An AutoencoderDC is sure of its latents: their log-variance is the least there is.
    """
    import torch

    found = model.encoder(pixels)
    if not hasattr(model, "quant_conv"):
        return found, torch.full_like(found, _CERTAIN)
    mean, logvar = (found if model.quant_conv is None else model.quant_conv(found)).chunk(2, dim=1)
    return mean, logvar.clamp(_CERTAIN, 20.0)  # as AutoencoderKL does
