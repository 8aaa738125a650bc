"""Training the cnn, by regression: a task of :mod:`components.training.loop`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.contracts.recipe import Cnn
from components.models.damsm import Towers, load_towers
from components.models.one_pass import Design, Saved
from components.models.reading import Reading
from components.training.pairs import PairsTask


class Regress(nn.Module):
    """The network with its loss: absolute and squared error, and distance of a frozen CLIP's features."""

    def __init__(self, design: Design, network: Any, config: Cnn) -> None:
        super().__init__()
        self.design, self.network, self.config = design, network, config
        self._eyes: tuple[Towers, ...] = ()  # in a tuple, so that they are no part of the module

    def finished(self) -> Saved:
        """The network."""
        return Saved(self.design, self.network, {})

    def watch(self, clip: Path, device: torch.device) -> None:
        """Load the features of the perceptual term, where it has a weight."""
        if self.config.perceptual_weight:
            self._eyes = (load_towers(clip).to(device),)

    def forward(self, pixels: Tensor, ids: Tensor, words: Tensor, mask: Tensor, sentence: Tensor) -> dict[str, Tensor]:
        drawn = self.network(Reading(words, mask, sentence), words.new_zeros(len(words), 0))
        squared = F.mse_loss(drawn, pixels)
        loss = self.config.l1_weight * F.l1_loss(drawn, pixels) + self.config.l2_weight * squared
        found = {"error": squared.detach()}
        if self._eyes:
            found["perceptual"] = self._perceptual(drawn, pixels)
            loss = loss + self.config.perceptual_weight * found["perceptual"]
        return {"loss": loss, **found}

    def _perceptual(self, drawn: Tensor, pixels: Tensor) -> Tensor:
        """Mean squared distance of what the towers see region by region (Johnson et al. 2016, eq. 2, on CLIP)."""
        seen = [self._eyes[0].look(pictures)[0].float() for pictures in (drawn, pixels)]
        return F.mse_loss(seen[0], seen[1].detach())


class CnnTask(PairsTask):
    """The cnn on pictures and readings."""

    def build(self) -> nn.Module:
        """See :class:`components.training.loop.Task`."""
        return Regress(*self.network(), self.config)
