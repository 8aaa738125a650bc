"""Sections of the recipe on training: the models and how each is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.contracts.recipe_base import Config, Fraction, PositiveInt


class TextEncoder(Config):
    """CLIP, trained on the dataset with the contrastive loss; its text tower conditions the denoiser."""

    width: PositiveInt = 128
    layers: PositiveInt = 3  # of the text tower
    image_layers: PositiveInt = 3
    heads: PositiveInt = 4
    patch: PositiveInt = 8
    images: PositiveInt = 24_000  # images seen
    batch_size: PositiveInt = 256  # global
    learning_rate: float = Field(default=1e-3, gt=0)  # of AdamW
    muon_rate: float = Field(default=0.02, ge=0)  # of Muon, for matrices; 0 trains them with AdamW
    weight_decay: float = Field(default=0.01, ge=0)


class Autoencoder(Config):
    """AutoencoderKL; the down-sampling factor is 2 ** (len(channels) - 1)."""

    channels: tuple[PositiveInt, ...] = (16, 32, 64)
    layers_per_block: PositiveInt = 1
    norm_groups: PositiveInt = 8
    attention: bool = False  # in the middle block
    latent_channels: PositiveInt = 4
    images: PositiveInt = 10_000
    batch_size: PositiveInt = 16
    learning_rate: float = Field(default=4e-3, gt=0)
    muon_rate: float = Field(default=0.03, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    kl_weight: float = Field(default=1e-4, ge=0)


class Denoiser(Config):
    """UNet2DConditionModel on latents, by flow matching with logit-normal times (Esser et al. 2024), or by
    diffusion with epsilon or v prediction on Stable Diffusion's noise schedule."""

    channels: tuple[PositiveInt, ...] = (64, 128)
    layers_per_block: PositiveInt = 1
    norm_groups: PositiveInt = 16
    heads: PositiveInt = 4
    cross_attention: tuple[bool, ...] = ()  # by level, the finest first; none: the middle block alone reads tokens
    images: PositiveInt = 36_000
    batch_size: PositiveInt = 128
    learning_rate: float = Field(default=1e-3, gt=0)
    muon_rate: float = Field(default=0.02, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    caption_dropout: Fraction = 0.1
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    objective: Literal["flow", "epsilon", "v"] = "flow"
    time_mean: float = 0.0  # flow: of the logit-normal distribution of times
    time_std: float = Field(default=1.0, gt=0)
    time_shift: float = Field(default=1.0, gt=0)  # flow: above 1 moves times towards noise, as large pictures need
    min_snr_gamma: float = Field(default=5.0, ge=0)  # epsilon, v: cap of the loss's weight; 0 weighs all times alike
    zero_terminal_snr: bool = True  # v: the last step is pure noise


class Train(Config):
    """The model: three trainings and the encode step between them."""

    text_encoder: TextEncoder = TextEncoder()
    autoencoder: Autoencoder = Autoencoder()
    denoiser: Denoiser = Denoiser()
    warmup: Fraction = 0.05  # share of the steps over which the rates rise
    cooldown: Fraction = 0.6  # share of the steps over which they fall
    encode_text: bool = (
        False  # keep the text encoder's states of all captions, instead of reading them in each training
    )
    precision: Literal["bf16", "fp32"] = "bf16"  # of autocast; master weights are always fp32
    gradient_clip: float = Field(default=1.0, gt=0)  # where AdamW trains alone; Muon's steps have a fixed norm


class Retrain(Config):
    """How much of each training a continuation from the champion repeats, as a share of its images."""

    text_encoder: Annotated[float, Field(gt=0, le=4)] = 0.4
    autoencoder: Annotated[float, Field(gt=0, le=4)] = 1.0
    denoiser: Annotated[float, Field(gt=0, le=4)] = 1.0
