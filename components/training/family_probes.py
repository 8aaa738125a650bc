"""The trainings of cnn, vae and gan without their data, for preflight: see :mod:`components.training.probes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from components.contracts.recipe import Recipe

if TYPE_CHECKING:
    from components.training.probes import Probe, Shapes


def one_pass_probe(recipe: Recipe, shapes: Shapes) -> Probe:
    """The recipe's cnn, vae or gan on pairs of the largest size; all sentences differ.

    The frozen towers of a perceptual or DAMSM term are not in it: they hold no gradients and no optimiser's state.
    """
    from components.training.probes import Probe

    family, side = recipe.model.family, recipe.prepare.image_size
    section: Any = getattr(recipe.train, family)

    def build() -> nn.Module:
        return _module(section, side, shapes.text_width)

    def example(count: int) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(0)
        batch = {
            "pixels": torch.zeros(count, 3, side, side),
            "ids": torch.ones(count, shapes.tokens, dtype=torch.long),
            "words": torch.randn(count, shapes.tokens, shapes.text_width, generator=draws),
            "mask": torch.ones(count, shapes.tokens, dtype=torch.bool),
            "sentence": torch.randn(count, shapes.text_width, generator=draws),
        }
        if family == "vae":
            batch |= {"noise": torch.zeros(count, section.latent), "kl_weight": torch.ones(count)}
        if family == "gan":
            batch |= {"noise": torch.randn(count, section.noise + section.condition, generator=draws),
                      "penalised": torch.ones(count, dtype=torch.bool)}  # fmt: skip
        return batch

    return Probe(family, build, example)


def _module(section: Any, side: int, width: int) -> nn.Module:
    from components.models.one_pass import Design, make_network

    design = Design(section, side, width, width)
    network = make_network(design)
    if design.family == "cnn":
        from components.training.task_cnn import Regress

        return Regress(design, network, section)
    if design.family == "vae":
        from components.training.task_vae import Vary

        return Vary(design, network)
    from components.models.discriminators import discriminators_for
    from components.training.task_gan import Adversaries

    return Adversaries(design, network, discriminators_for(section, side, width), section)


def probes(recipe: Recipe, shapes: Shapes) -> list[Probe]:
    """The text encoder's training, where it is trained here, and the network's."""
    from components.training.probes import text_encoder_probe

    trained = recipe.train.text_encoder.source is None or recipe.train.text_encoder.fine_tune
    return [*([text_encoder_probe(recipe, shapes)] if trained else []), one_pass_probe(recipe, shapes)]
