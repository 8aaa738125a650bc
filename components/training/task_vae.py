"""Training the conditional variational autoencoder: a task of :mod:`components.training.loop`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.models.one_pass import Design, Saved
from components.models.reading import Reading
from components.training import objective
from components.training.pairs import PairsTask


def kl_between(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from N(prior_mean, exp(prior_logvar)), diagonal: nats a row, ``[N]``.

    Sohn et al. 2015, eq. 4 asks for it; the closed form is that of Kingma and Welling 2014, app. B, with a prior
    that is not standard.
    """
    spread = (logvar.exp() + (mean - prior_mean).square()) / prior_logvar.exp()
    return 0.5 * (prior_logvar - logvar + spread - 1).sum(1)


class Vary(nn.Module):
    """The network with the negative evidence lower bound: squared error and weighted KL, per pixel."""

    def __init__(self, design: Design, network: Any) -> None:
        super().__init__()
        self.design, self.network = design, network

    def finished(self) -> Saved:
        """The network; the encoder is kept, since a retrain goes on with it."""
        return Saved(self.design, self.network, {})

    def watch(self, clip: Path, device: torch.device) -> None:
        """Nothing: the loss needs no frozen part."""

    def forward(
        self, pixels: Tensor, ids: Tensor, words: Tensor, mask: Tensor, sentence: Tensor, noise: Tensor,
        kl_weight: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        condition = self.network.condition(Reading(words, mask, sentence))
        mean, logvar = self.network.posteriors(pixels, condition)
        drawn = self.network.decode(objective.sample_gaussian(mean, logvar, noise), condition)
        error = F.mse_loss(drawn, pixels)
        nats = kl_between(mean, logvar, *self.network.priors(condition))
        loss = error + (kl_weight * nats).mean()
        return {"loss": loss, "error": error.detach(), "nats": nats.mean().detach()}


@dataclass
class VaeTask(PairsTask):
    """The vae on pictures and readings. The weight of the KL rises over the first ``kl_warmup`` of the steps."""

    done: float = 1.0  # share of the steps

    def build(self) -> nn.Module:
        """See :class:`components.training.loop.Task`."""
        return Vary(*self.network())

    def at(self, step: int, steps: int) -> None:
        """The loop tells which step the next batch is of."""
        self.done = step / steps

    def chance(self, count: int, draws: torch.Generator) -> dict[str, Tensor]:
        """The posterior's noise and the KL's weight."""
        weight = self.config.kl_weight * annealed(self.done, self.config.kl_warmup)
        noise = torch.randn(count, self.config.latent, generator=draws)
        return {"noise": noise, "kl_weight": torch.full((count,), weight)}


def annealed(done: float, warmup: float) -> float:
    """Share of the KL's weight after ``done`` of the training: linear (Bowman et al. 2016, sec. 3.1)."""
    return min(1.0, done / warmup) if warmup else 1.0
