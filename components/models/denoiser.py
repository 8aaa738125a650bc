"""The denoiser: a UNet on latents, conditioned on every token and on a pooled view of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.contracts.recipe import Denoiser
from components.models.quiet import quieten


def make_denoiser(config: Denoiser, latent_channels: int, latent_size: int, text_width: int) -> Any:
    """A fresh ``UNet2DConditionModel`` for latents ``[N, latent_channels, latent_size, latent_size]``.

    Tokens are read by cross-attention in the middle block (and in the levels named by
    ``cross_attention``); an attention-pooled view of them joins the time embedding and scales and shifts
    every residual block (Saharia et al. 2022, "Imagen", sec. 2.3: pooled text embeddings beside
    cross-attention). Its prediction is the flow's velocity.
    """
    quieten()
    import torch
    from diffusers import UNet2DConditionModel

    cross = config.cross_attention or (False,) * len(config.channels)
    model = UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)),
        attention_head_dim=config.heads,  # diffusers' old misnomer: the number of heads
        norm_num_groups=config.norm_groups,
        cross_attention_dim=text_width,
        addition_embed_type="text",
        addition_embed_type_num_heads=config.heads,
        resnet_time_scale_shift="scale_shift",
    )
    # start from the identity in every residual block and from a zero prediction (Dhariwal & Nichol 2021)
    for name, weight in model.named_parameters():
        if ".conv2." in name or name.startswith("conv_out."):
            torch.nn.init.zeros_(weight)
    return model


def load_denoiser(folder: Path) -> Any:
    """A saved ``UNet2DConditionModel``, in fp32 and evaluation mode."""
    quieten()
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()
