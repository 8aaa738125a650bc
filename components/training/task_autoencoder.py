"""Training the autoencoder: a task of :mod:`components.training.loop`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.contracts.recipe import Autoencoder
from components.models import autoencoder as autoencoders
from components.training import objective
from components.training.samples import load_pictures, to_pixels


class Rebuild(nn.Module):
    """AutoencoderKL with its loss."""

    def __init__(self, model: Any, kl_weight: float) -> None:
        super().__init__()
        self.model, self.kl_weight = model, kl_weight

    def finished(self) -> Any:
        """The autoencoder."""
        return self.model

    def forward(self, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        mean, logvar = (part.float() for part in autoencoders.encode_moments(self.model, pixels))
        rebuilt = self.model.decode(objective.sample_gaussian(mean, logvar, noise), return_dict=False)[0]
        loss, error = objective.autoencoder_loss(rebuilt, pixels, mean, logvar, self.kl_weight)
        return {"loss": loss, "psnr": objective.psnr(error.detach())}


@dataclass
class AutoencoderTask:
    """The autoencoder on pictures of a split."""

    config: Autoencoder
    dataset: Path
    image_size: int
    start: Path | None = None
    name: str = "autoencoder"
    split: str = "train"
    _data: Any = field(default=None, repr=False)

    def held_out(self) -> AutoencoderTask:
        """The same on pictures that are never trained on."""
        return replace(self, split="holdout", _data=None)

    def build(self) -> nn.Module:
        if self.start:
            return Rebuild(autoencoders.load_autoencoder(self.start), self.config.kl_weight)
        return Rebuild(autoencoders.make_autoencoder(self.config, self.image_size), self.config.kl_weight)

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        self._data = load_pictures(self.dataset, self.split)
        return list(self._data.sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        grid = (side // self.config.downsampling for side in self._data.shape(indices)[:2])
        noise = torch.randn(len(indices), self.config.latent_channels, *grid, generator=draws)
        return {"pixels": to_pixels(self._data.take(indices[mine])), "noise": noise[mine]}
