"""AutoencoderKL (Rombach et al. 2022): pictures to a small latent grid and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.contracts.recipe import Autoencoder
from components.models.quiet import quieten


def factor_of(config: Autoencoder) -> int:
    """Pixels of a picture's side to one of the latent's."""
    return int(2 ** (len(config.channels) - 1))


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
    """A saved ``AutoencoderKL``, in fp32 and evaluation mode."""
    quieten()
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()
