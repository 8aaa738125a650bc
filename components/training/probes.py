"""Trainings without their data: module and batches of the right shapes, from the recipe alone.

So preflight can reckon memory and operations, and try a step, before anything is collected or trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.contracts.recipe import Recipe
from components.models.families import ONE_PASS
from components.training import family_probes


@dataclass(frozen=True)
class Probe:
    """One training, as preflight looks at it."""

    kind: str  # section below `train`
    build: Callable[[], nn.Module]
    example: Callable[[int], dict[str, Tensor]]  # so many samples


@dataclass(frozen=True)
class Shapes:
    """What a training's batches are like; from the recipe, or from the artifacts where they are there."""

    height: int  # of the largest picture, pixels
    width: int
    tokens: int  # of a prompt, padding included
    vocabulary: int
    text_width: int  # of the text encoder's states
    latent_channels: int
    factor: int  # pixels to one of the latent's

    @classmethod
    def of(cls, recipe: Recipe) -> Shapes:
        """As the recipe says; parts from elsewhere are read from their config where they are on this machine."""
        prepare, train = recipe.prepare, recipe.train
        side = prepare.image_size
        source, width = train.text_encoder.source, train.text_encoder.width
        if source and (Path(source) / "config.json").is_file():
            from components.models.text_encoder import saved_width

            width = saved_width(Path(source))
        return cls(
            side, side, prepare.max_tokens, prepare.vocabulary, width, train.autoencoder.latent_channels,
            train.autoencoder.downsampling,
        )  # fmt: skip


class _Tokens:
    """What the CLIP's config asks of a tokenizer."""

    bos_token, eos_token, pad_token = "<begin>", "<end>", "<pad>"
    bos_token_id, eos_token_id, pad_token_id = 1, 3, 0

    def __init__(self, shapes: Shapes) -> None:
        self._size, self.model_max_length = shapes.vocabulary, shapes.tokens

    def __len__(self) -> int:
        return self._size


def text_encoder_probe(recipe: Recipe, shapes: Shapes) -> Probe:
    """CLIP on square pictures and whole prompts."""
    section = recipe.train.text_encoder
    side = recipe.prepare.image_size

    def build() -> nn.Module:
        from components.models.damsm import Towers, make_head
        from components.models.text_encoder import make_clip
        from components.training.task_text_encoder import Contrast

        clip = make_clip(section, _Tokens(shapes), side)
        head = None if section.losses == "contrastive" else make_head(clip, section.damsm_width)
        module = Contrast(Towers(clip, head), section)
        module.training = False  # alone: it compares the samples of its own batch; its parts are in training
        return module

    def example(count: int) -> dict[str, Tensor]:
        # captions that differ: equal ones are no mismatch to each other's pictures, and leave no loss
        words = torch.arange(count * shapes.tokens).reshape(count, -1)
        ids = _Tokens.eos_token_id + 1 + words % (shapes.vocabulary - _Tokens.eos_token_id - 1)
        ids[:, -1] = _Tokens.eos_token_id
        return {"pixels": torch.randn(count, 3, side, side), "ids": ids}

    return Probe("text_encoder", build, example)


def autoencoder_probe(recipe: Recipe, shapes: Shapes) -> Probe:
    """The autoencoder on the largest pictures."""
    section = recipe.train.autoencoder

    def build() -> nn.Module:
        from components.models.autoencoder import make_autoencoder
        from components.training.task_autoencoder import Rebuild

        return Rebuild(make_autoencoder(section, recipe.prepare.image_size), section.kl_weight)

    def example(count: int) -> dict[str, Tensor]:
        grid = (shapes.height // section.downsampling, shapes.width // section.downsampling)
        pixels = torch.randn(count, 3, shapes.height, shapes.width)
        return {"pixels": pixels, "noise": torch.randn(count, section.latent_channels, *grid)}

    return Probe("autoencoder", build, example)


def denoiser_probe(recipe: Recipe, shapes: Shapes) -> Probe:
    """The denoiser on latents of the largest pictures and states of whole prompts."""
    section = recipe.train.denoiser
    height, width = shapes.height // shapes.factor, shapes.width // shapes.factor

    def build() -> nn.Module:
        from components.models.denoiser import make_denoiser
        from components.training.task_denoiser import Denoise

        side = recipe.prepare.image_size // shapes.factor
        model = make_denoiser(section, shapes.latent_channels, side, shapes.text_width)
        return Denoise(model, section, shapes.text_width if section.align_weight else None)

    def example(count: int) -> dict[str, Tensor]:
        data = torch.randn(count, shapes.latent_channels, height, width)
        batch: dict[str, Any] = {
            "data": data, "noise": torch.randn_like(data), "times": torch.full((count,), 0.5),
            "states": torch.randn(count, shapes.tokens, shapes.text_width),
            "mask": torch.ones(count, shapes.tokens, dtype=torch.bool),
        }  # fmt: skip
        if section.align_weight:
            side = max(1, recipe.prepare.image_size // recipe.train.text_encoder.patch)
            batch["seen"] = torch.randn(count, shapes.text_width, side, side)
        return batch

    return Probe("denoiser", build, example)


def _diffusion(recipe: Recipe, shapes: Shapes) -> list[Probe]:
    """The trainings of a latent diffusion model; parts that others trained are not trained again."""
    train = recipe.train
    probes = []
    if train.text_encoder.source is None or train.text_encoder.fine_tune:
        probes.append(text_encoder_probe(recipe, shapes))
    if train.autoencoder.source is None:
        probes.append(autoencoder_probe(recipe, shapes))
    return [*probes, denoiser_probe(recipe, shapes)]


Makes = Callable[[Recipe, Shapes], list[Probe]]
FAMILIES: dict[str, Makes] = {
    "diffusion": _diffusion,
    **dict.fromkeys(ONE_PASS, family_probes.probes),
}  # the trainings of each `model.family`


def probes_of(recipe: Recipe) -> list[Probe]:
    """All trainings of a recipe, in their order; none for a family that has no entry in :data:`FAMILIES`."""
    make = FAMILIES.get(recipe.model.family)
    return make(recipe, Shapes.of(recipe)) if make else []
