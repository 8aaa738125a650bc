"""Sections of the recipe on training: the models and how each is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from components.contracts.recipe_base import Config, Fraction, PositiveInt
from components.contracts.recipe_families import Cnn, Gan, Vae
from components.contracts.sizes import AUTOENCODERS, DENOISERS, TEXT_ENCODERS, Size, with_size

Gamma = Annotated[float, Field(gt=0)]


class TextEncoder(Config):
    """CLIP, trained on the dataset with the contrastive loss, DAMSM or both; its text tower conditions the denoiser.
    Or a model that others trained, by ``source``."""

    source: str | None = None  # folder or hub id of a CLIP or T5 that is taken as it is; null: trained here
    revision: str | None = None  # of the hub id: a commit or a tag
    max_tokens: PositiveInt | None = None  # of a prompt, with source; null: as many as it reads, at most 120
    size: Size | None = None  # xs .. xl: stands for width, layers, image_layers, heads, patch and learning_rate
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
    fine_tune: bool = False  # with source, a CLIP: trained on from its weights, with its tokenizer
    losses: Literal["contrastive", "damsm", "both"] = "contrastive"  # CLIP's; word and sentence level as AttnGAN's
    damsm_weight: float = Field(default=1.0, gt=0)  # of the DAMSM loss, beside the contrastive one
    damsm_width: PositiveInt = 128  # of the space in which words and regions meet
    damsm_gammas: tuple[Gamma, Gamma, Gamma] = (5.0, 5.0, 10.0)  # of attention, words and matching (Xu et al. 2018)

    thumbnail: int = Field(default=0, ge=0)  # side in pixels of what is drawn from the caption alone; 0: nothing
    thumbnail_weight: float = Field(default=100.0, gt=0)  # of its error, beside the other losses

    @model_validator(mode="after")
    def _source_to_tune(self) -> TextEncoder:
        if self.fine_tune and self.source is None:
            raise ValueError("fine_tune is true without a source: name a CLIP's folder or hub id, or set it to false")
        return self

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, data: Any) -> Any:
        return with_size(data, TEXT_ENCODERS)

    def identity(self) -> dict[str, Any]:
        """Of a training: what was loaded instead, and the dial whose keys stand for themselves, are left out."""
        left_out = {"source", "revision", "max_tokens", "size", "fine_tune"}
        if self.losses == "contrastive":  # those of DAMSM have no effect
            left_out |= {"losses", "damsm_weight", "damsm_width", "damsm_gammas"}
        if self.thumbnail == 0:
            left_out |= {"thumbnail", "thumbnail_weight"}
        return self.model_dump(mode="json", exclude=left_out)


class Autoencoder(Config):
    """AutoencoderKL, trained on the dataset; its down-sampling factor is 2 ** (len(channels) - 1). Or a model that
    others trained, by ``source``."""

    source: str | None = None  # folder or hub id of an AutoencoderKL or AutoencoderDC; null: trained here
    revision: str | None = None  # of the hub id: a commit or a tag
    factor: PositiveInt = 8  # of down-sampling, with source: what its pictures' sides must be multiples of
    scaling: Literal["measured", "config"] = "measured"  # of latents: to unit variance here, or the source's own
    size: Size | None = None  # xs .. xl: stands for channels, layers, groups, attention, latent channels and rates
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

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, data: Any) -> Any:
        return with_size(data, AUTOENCODERS)

    @model_validator(mode="after")
    def _scaling_is_known(self) -> Autoencoder:
        if self.scaling == "config" and self.source is None:
            raise ValueError("scaling: config needs a source; a model trained here has no factor before it is measured")
        return self

    @property
    def downsampling(self) -> int:
        """Pixels of a picture's side to one of the latent's."""
        return self.factor if self.source else int(2 ** (len(self.channels) - 1))

    def identity(self) -> dict[str, Any]:
        """Of a training: what was loaded instead, and the dial whose keys stand for themselves, are left out."""
        return self.model_dump(mode="json", exclude={"source", "revision", "factor", "scaling", "size"})


class Denoiser(Config):
    """A U-Net (UNet2DConditionModel) or a diffusion transformer (PixArtTransformer2DModel) on latents, by flow
    matching with logit-normal times (Esser et al. 2024), or by diffusion with epsilon or v prediction on Stable
    Diffusion's noise schedule."""

    family: Literal["unet", "dit"] = "unet"
    size: Size | None = None  # xs .. xl: stands for the family's shape, the rates and ema_decay
    width: PositiveInt = 192  # dit: of a token
    depth: PositiveInt = 6  # dit: blocks
    patch: PositiveInt = 2  # dit: side of the square of latents that is one token
    align_weight: float = Field(default=0.0, ge=0)  # of the likeness to the CLIP's view of the clean picture
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
    ema_length: float | None = Field(default=None, gt=0, lt=0.28)  # power-function average (EDM2) in its place
    objective: Literal["flow", "epsilon", "v"] = "flow"
    time_mean: float = 0.0  # flow: of the logit-normal distribution of times
    time_std: float = Field(default=1.0, gt=0)
    time_shift: float = Field(default=1.0, gt=0)  # flow: above 1 moves times towards noise, as large pictures need
    min_snr_gamma: float = Field(default=5.0, ge=0)  # epsilon, v: cap of the loss's weight; 0 weighs all times alike
    zero_terminal_snr: bool = True  # v: the last step is pure noise

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, data: Any) -> Any:
        family = data.get("family", "unet") if isinstance(data, dict) else None
        return with_size(data, DENOISERS.get(family, {}) if isinstance(family, str) else {})

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Denoiser:
        if self.family == "dit":
            if self.width % self.heads or self.width % 4:
                raise ValueError(f"width {self.width} must be a multiple of heads ({self.heads}) and of 4")
        elif self.cross_attention and len(self.cross_attention) != len(self.channels):
            raise ValueError(f"cross_attention names {len(self.cross_attention)} levels, channels {len(self.channels)}")
        return self

    @property
    def downsampling(self) -> int:
        """What both sides of a grid of latents are a multiple of."""
        return self.patch if self.family == "dit" else int(2 ** (len(self.channels) - 1))

    def identity(self) -> dict[str, Any]:
        """The keys of the chosen family; the dial's keys stand for themselves."""
        return self.model_dump(mode="json", exclude={"size", *_OTHERS[self.family]})


_OTHERS = {  # keys that only the other family reads
    "unet": ("width", "depth", "patch"),
    "dit": ("channels", "layers_per_block", "norm_groups", "cross_attention"),
}


class Train(Config):
    """The model: three trainings and the encode step between them."""

    text_encoder: TextEncoder = TextEncoder()
    autoencoder: Autoencoder = Autoencoder()
    denoiser: Denoiser = Denoiser()
    cnn: Cnn = Cnn()  # these three in place of autoencoder and denoiser, by model.family
    vae: Vae = Vae()
    gan: Gan = Gan()
    warmup: Fraction = 0.05  # share of the steps over which the rates rise
    cooldown: Fraction = 0.6  # share of the steps over which they fall
    encode_text: bool = (
        False  # keep the text encoder's states of all captions, instead of reading them in each training
    )
    captions: Literal["sampled", "first"] = "sampled"  # where a picture has several: one of them each time, or its own
    precision: Literal["bf16", "fp32"] = "bf16"  # of autocast; master weights are always fp32
    validation_points: int = Field(default=5, ge=0)  # moments of each training with a held-out loss; 0: none
    validation_images: PositiveInt = 128  # held-out pictures at most, the same at every moment
    gradient_clip: float = Field(default=1.0, gt=0)  # where AdamW trains alone; Muon's steps have a fixed norm


class Retrain(Config):
    """How much of each training a continuation from the champion repeats, as a share of its images."""

    text_encoder: Annotated[float, Field(gt=0, le=4)] = 0.4
    autoencoder: Annotated[float, Field(gt=0, le=4)] = 1.0
    denoiser: Annotated[float, Field(gt=0, le=4)] = 1.0
    network: Annotated[float, Field(gt=0, le=4)] = 1.0  # of a cnn, vae or gan
