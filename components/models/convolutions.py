"""Blocks that the decoders of cnn and vae are made of."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.models.reading import Reading


def widths(side: int, channels: int, most: int, base: int = 4) -> list[int]:
    """Channels at sides ``base, 2 base, ... side``: ``channels`` at the largest, doubled at each halving."""
    steps = (side // base).bit_length() - 1
    return [min(most, channels * 2**step) for step in range(steps, -1, -1)]


def groups_of(channels: int) -> int:
    """Groups of a group norm: as many as divide the channels, at most 16, of at least 4 channels where it fits."""
    return next(g for g in (16, 8, 4, 2, 1) if channels % g == 0 and (channels // g >= 4 or g == 1))


class Condition(nn.Module):
    """A prompt's sentence and the mean of its words as one vector ``[N, width]``."""

    def __init__(self, words: int, sentence: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(words + sentence, width)

    def forward(self, reading: Reading) -> Tensor:
        mask = reading.mask.unsqueeze(-1).to(reading.words.dtype)
        mean = (reading.words * mask).sum(1) / mask.sum(1)
        unit = F.normalize(reading.sentence.float(), dim=-1) * reading.sentence.shape[-1] ** 0.5
        return F.silu(self.linear(torch.cat([mean.float(), unit], 1)))


class Block(nn.Module):
    """A residual block whose norms are scaled and shifted by a vector (Dumoulin et al. 2017; Perez et al. 2018)."""

    def __init__(self, channels: int, out: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups_of(width), width, affine=False) for width in (channels, out))
        self.styles = nn.ModuleList(nn.Linear(condition, 2 * width) for width in (channels, out))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, out, 3, padding=1) for width in (channels, out))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        nn.init.zeros_(self.convolutions[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        kept = self.skip(x)
        for norm, style, convolution in zip(self.norms, self.styles, self.convolutions, strict=True):
            scale, shift = style(condition)[:, :, None, None].chunk(2, 1)
            x = convolution(F.silu(norm(x) * (1 + scale) + shift))
        return torch.as_tensor(kept + x)


class Decoder(nn.Module):
    """A vector ``[N, condition]`` to pictures ``[N, 3, side, side]`` in -1..1, from 4 x 4 upwards."""

    def __init__(self, condition: int, side: int, channels: int, most: int) -> None:
        super().__init__()
        self.widths = widths(side, channels, most)
        self.first = nn.Linear(condition, self.widths[0] * 16)
        pairs = zip(self.widths[:1] + self.widths[:-1], self.widths, strict=True)
        self.blocks = nn.ModuleList(Block(before, after, condition) for before, after in pairs)
        self.norm = nn.GroupNorm(groups_of(self.widths[-1]), self.widths[-1])
        self.last = nn.Conv2d(self.widths[-1], 3, 3, padding=1)

    def forward(self, condition: Tensor) -> Tensor:
        x = self.first(condition).view(-1, self.widths[0], 4, 4)
        for index, block in enumerate(self.blocks):
            if index:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(x, condition)
        return torch.tanh(self.last(F.silu(self.norm(x))).float())


class Encoder(nn.Module):
    """Pictures ``[N, 3, side, side]`` to features ``[N, features]``; the mirror of :class:`Decoder`."""

    def __init__(self, side: int, channels: int, most: int) -> None:
        super().__init__()
        sizes = widths(side, channels, most)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(3, sizes[0], 3, padding=1)]
        for before, after in pairwise(sizes):
            layers += [
                nn.GroupNorm(groups_of(before), before), nn.SiLU(), nn.Conv2d(before, after, 4, stride=2, padding=1),
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.GroupNorm(groups_of(sizes[-1]), sizes[-1]), nn.SiLU(), nn.Flatten())
        self.features = sizes[-1] * 16

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(pictures))
