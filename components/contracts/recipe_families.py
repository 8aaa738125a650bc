"""Sections of the recipe on the families of models before diffusion: cnn, vae and gan."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.contracts.recipe_base import Config, Fraction, PositiveInt

Family = Literal["cnn", "vae", "gan", "diffusion"]
MIN_SIDE = 8  # of the pictures of cnn, vae and gan, in pixels


class Model(Config):
    """What kind of model is trained on the text encoder: ``train`` has a section for each."""

    family: Family = "diffusion"


class Cnn(Config):
    """A convolutional decoder from the prompt to the picture, trained by regression: one picture a prompt."""

    channels: PositiveInt = 32  # at the picture's side; doubled at every halving of the side
    max_channels: PositiveInt = 192
    l1_weight: float = Field(default=1.0, ge=0)  # mean absolute error
    l2_weight: float = Field(default=0.0, ge=0)  # mean squared error
    perceptual_weight: float = Field(default=0.0, ge=0)  # squared distance of the text encoder's image features
    images: PositiveInt = 60_000
    batch_size: PositiveInt = 64
    learning_rate: float = Field(default=2e-3, gt=0)
    muon_rate: float = Field(default=0.02, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_is_minimised(self) -> Cnn:
        if not self.l1_weight + self.l2_weight:
            raise ValueError("one of l1_weight and l2_weight must be above 0: features alone do not fix a picture")
        return self


class Vae(Config):
    """A conditional variational autoencoder (Sohn et al. 2015), sampled from its prior by prompt and seed."""

    channels: PositiveInt = 32
    max_channels: PositiveInt = 192
    latent: PositiveInt = 32  # numbers in z
    prior: Literal["normal", "learned"] = "learned"  # p(z) = N(0, 1), or p(z|c) of a small network
    kl_weight: float = Field(default=1e-3, gt=0)  # nats of a picture against its mean squared error
    kl_warmup: Fraction = 0.3  # share of the training over which the weight rises from 0; 0: no annealing
    images: PositiveInt = 60_000
    batch_size: PositiveInt = 64
    learning_rate: float = Field(default=2e-3, gt=0)
    muon_rate: float = Field(default=0.02, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)


class Gan(Config):
    """DM-GAN (Zhu et al. 2019). ``pipelines/recipes/cub-dmgan.yaml`` holds the settings of 2019."""

    stages: int = Field(default=2, ge=1, le=4)  # generators, each at twice the side of the one before
    channels: PositiveInt = 32  # of the generator at every stage's end
    discriminator_channels: PositiveInt = 32  # after the first halving; doubled at each
    noise: PositiveInt = 100  # numbers in z
    condition: PositiveInt = 100  # numbers of the augmented condition
    residual_blocks: int = Field(default=2, ge=0)  # of each refinement
    norm: Literal["group", "batch"] = "group"  # of the generator
    memory: bool = True  # dynamic memory; false: word attention alone, as in AttnGAN
    loss: Literal["hinge", "bce"] = "hinge"
    spectral_norm: bool = True  # of the discriminators
    r1_weight: float = Field(default=0.0, ge=0)  # gamma of R1, 0: off
    r1_every: PositiveInt = 16  # steps between two penalties, which are weighted as many times
    damsm_weight: float = Field(default=1.0, ge=0)  # lambda of the word and sentence losses
    kl_weight: float = Field(default=1.0, ge=0)  # of the conditioning augmentation
    crop: float = Field(default=1.0, ge=1, le=2)  # pictures are enlarged this much and cropped at random
    flip: bool = False  # pictures are mirrored at random: only where no caption says left or right
    images: PositiveInt = 60_000
    batch_size: PositiveInt = 64
    learning_rate: float = Field(default=4e-4, gt=0)  # of the generator
    discriminator_rate: float = Field(default=4e-4, gt=0)
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)  # of Adam
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.998, ge=0, lt=1)  # of the generator

    @property
    def muon_rate(self) -> float:
        """0: both players are trained with Adam alone."""
        return 0.0


def require_side(size: int, family: Family, stages: int) -> None:
    """Do nothing if a model of this family can draw ``size`` x ``size`` pixels.

    Raises:
        ValueError: the side is no power of two, or so small that the first of a GAN's stages has none.
    """
    smallest = MIN_SIDE * (2 ** (stages - 1) if family == "gan" else 1)
    if size & (size - 1) or size < smallest:
        stages_said = f" with train.gan.stages {stages}" if family == "gan" else ""
        raise ValueError(
            f"prepare.image_size {size} must be a power of two, at least {smallest}, for model.family {family}"
            f"{stages_said}"
        )
