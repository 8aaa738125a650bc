"""The denoiser: a U-Net or a diffusion transformer on latents, conditioned on the tokens of the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.contracts.recipe import Denoiser
from components.models.quiet import quieten
from components.models.transformer import NO_CONDITIONS, make_transformer

FOLDERS = {"UNet2DConditionModel": "unet", "PixArtTransformer2DModel": "transformer"}  # of a pipeline, by class


def make_denoiser(config: Denoiser, latent_channels: int, latent_size: int, text_width: int) -> Any:
    """A fresh denoiser of the section's family for latents ``[N, latent_channels, latent_size, latent_size]``.

    Args:
        text_width: of the text encoder's states.
    """
    quieten()
    make = make_transformer if config.family == "dit" else _make_unet
    return make(config, latent_channels, latent_size, text_width)


def _make_unet(config: Denoiser, latent_channels: int, latent_size: int, text_width: int) -> Any:
    """A fresh ``UNet2DConditionModel``.

    Tokens are read by cross-attention in the middle block (and in the levels named by
    ``cross_attention``); an attention-pooled view of them joins the time embedding and scales and shifts
    every residual block (Saharia et al. 2022, "Imagen", sec. 2.3: pooled text embeddings beside
    cross-attention).
    """
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
    """A saved ``UNet2DConditionModel`` or ``PixArtTransformer2DModel``, in fp32 and evaluation mode.

    Raises:
        OSError, KeyError: the folder holds neither.
    """
    quieten()
    import diffusers

    name = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]
    if name not in FOLDERS:
        raise KeyError(f"{folder} holds a {name}, not one of {', '.join(FOLDERS)}")
    kind = getattr(diffusers, name)
    return kind.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()


def fit_to(model: Any, device: Any) -> None:
    """Choose the attention that trains fastest on the device; what it computes is the same up to rounding.

    On a processor the backward pass of torch's fused attention takes four times as long in bf16 as plain matrix
    products do while there are few places (up to 256); above that it saves the memory of their products.
    """
    from diffusers.models.attention_processor import AttnProcessor

    side = model.config.sample_size // (model.config.patch_size if reads_mask(model) else 1)
    if device.type == "cpu" and side * side <= 256:
        model.set_attn_processor(AttnProcessor())


def downsampling_of(model: Any) -> int:
    """Sides of the latents must be multiples of this: a U-Net halves them at every level but the last, a transformer
    cuts them into patches."""
    config = model.config
    return int(config.patch_size if reads_mask(model) else 2 ** (len(config.block_out_channels) - 1))


def reads_mask(model: Any) -> bool:
    """True if the denoiser is told which tokens are padding; the U-Net's pipeline shows it all tokens alike."""
    return type(model).__name__ != "UNet2DConditionModel"


def predict(model: Any, noisy: Any, levels: Any, states: Any, mask: Any = None) -> Any:
    """The prediction for noisy latents ``[N, C, h, w]``, of the same shape, as either stock pipeline asks for it.

    Args:
        levels: noise levels 0 .. 1000, ``[N]`` or a scalar. states: of the prompts, ``[N, tokens, width]``.
        mask: 1 for a token, 0 for padding, ``[N, tokens]``; where :func:`reads_mask`.
    """
    if not reads_mask(model):
        import torch

        noisy = noisy.contiguous(memory_format=torch.channels_last)  # convolutions are faster so
        return model(noisy, levels, encoder_hidden_states=states, return_dict=False)[0]
    return model(
        noisy,
        encoder_hidden_states=states,
        encoder_attention_mask=mask,
        timestep=levels.expand(len(noisy)),
        added_cond_kwargs=NO_CONDITIONS,
        return_dict=False,
    )[0]


def middle(model: Any, config: Denoiser) -> Any:
    """The block whose output is compared with an image encoder's view: the U-Net's middle, or a third into the
    transformer (Yu et al. 2024, "Representation Alignment for Generation", sec. 4: block 8 of 28)."""
    if config.family == "unet":
        return model.mid_block
    return model.transformer_blocks[max(1, round(config.depth * 8 / 28)) - 1]


def middle_width(config: Denoiser) -> int:
    """Channels of that block's output."""
    return config.width if config.family == "dit" else config.channels[-1]
