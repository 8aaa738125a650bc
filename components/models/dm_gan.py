"""The generators of DM-GAN (Zhu, Pan, Chen and Yang 2019, "DM-GAN: Dynamic Memory Generative Adversarial Networks for
Text-to-Image Synthesis"), with the blocks of AttnGAN (Xu et al. 2018) and the conditioning augmentation of StackGAN
(Zhang et al. 2017). Layer sizes are those of the authors' code; the first of ``stages`` generators draws the smallest
picture, each next one refines the features of the one before at twice the side.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.contracts.recipe import Gan
from components.models.convolutions import groups_of
from components.models.reading import Reading


class Drawing(NamedTuple):
    """What the generators make in training."""

    pictures: list[Tensor]  # of every stage, the smallest first; [N, 3, side, side] in -1..1
    mean: Tensor  # of the augmented condition, [N, condition]
    logvar: Tensor


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(groups_of(channels), channels)


def _gated(before: int, after: int, norm: str) -> nn.Sequential:
    """A 3 x 3 convolution whose one half of channels gates the other (gated linear unit)."""
    return nn.Sequential(nn.Conv2d(before, 2 * after, 3, padding=1, bias=False), _norm(norm, 2 * after), nn.GLU(1))


def _doubling(before: int, after: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), *_gated(before, after, norm))


class Residual(nn.Module):
    """The residual block of AttnGAN."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *_gated(channels, channels, norm), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _norm(norm, channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(x + self.block(x))


class Augmentation(nn.Module):
    """Conditioning augmentation: a draw from N(mu(s), diag(sigma(s)^2)) in place of the sentence.

    Zhang et al. 2017, "StackGAN", sec. 3.2, eq. 2 being its Kullback-Leibler term.
    """

    def __init__(self, sentence: int, condition: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sentence, 4 * condition)

    def forward(self, sentence: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The condition, and mean and log-variance it is drawn from, each ``[N, condition]``."""
        # a unit sentence would leave mu near 0, where the augmentation drowns it
        scaled = F.normalize(sentence.float(), dim=-1) * sentence.shape[-1] ** 0.5
        mean, logvar = F.glu(self.linear(scaled).float(), 1).chunk(2, 1)
        return mean + torch.exp(0.5 * logvar) * noise, mean, logvar


class First(nn.Module):
    """Condition and noise to features ``[N, channels, side, side]``, from 4 x 4 upwards."""

    def __init__(self, given: int, channels: int, side: int, norm: str) -> None:
        super().__init__()
        doublings = (side // 4).bit_length() - 1
        self.width = channels * 2**doublings
        out = self.width * 32
        self.linear = nn.Linear(given, out, bias=False)
        self.norm = nn.BatchNorm1d(out) if norm == "batch" else nn.GroupNorm(groups_of(2 * self.width), out)
        steps = [self.width // 2**i for i in range(doublings + 1)]
        self.up = nn.Sequential(*(_doubling(a, b, norm) for a, b in pairwise(steps)))

    def forward(self, given: Tensor) -> Tensor:
        x = F.glu(self.norm(self.linear(given)), 1).view(-1, self.width, 4, 4)
        return torch.as_tensor(self.up(x))


class Memory(nn.Module):
    """Dynamic memory: what the words say, written to slots and read by every place of the picture.

    Zhu et al. 2019: the writing gate (sec. 3.2: ``g_w = sigma(A w_i + B mean_j r_j)``; a slot is ``M_w(w_i) g_w +
    M_r(mean r) (1 - g_w)``), key addressing and value reading (sec. 3.1: softmax over slots of ``phi_K(m_i) r_j``),
    and the response gate (sec. 3.3: ``g_r = sigma(W [o_j, r_j] + b)``; new features ``o_j g_r + r_j (1 - g_r)``).
    """

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        slot = 2 * channels
        self.gate_words = nn.Linear(words, 1, bias=False)
        self.gate_picture = nn.Linear(channels, 1, bias=False)
        self.write_words = nn.Linear(words, slot)
        self.write_picture = nn.Linear(channels, slot)
        self.key = nn.Linear(slot, channels)
        self.value = nn.Linear(slot, channels)
        self.response = nn.Conv2d(2 * channels, 1, 1)

    def forward(self, features: Tensor, reading: Reading) -> Tensor:
        """New features, of the shape of ``features`` ``[N, C, H, W]``."""
        mean = features.mean((2, 3)).detach()  # as the authors' code: the gate does not shape the picture
        gate = torch.sigmoid(self.gate_words(reading.words) + self.gate_picture(mean)[:, None])
        written = F.relu(self.write_words(reading.words)) * gate
        slots = written + F.relu(self.write_picture(mean))[:, None] * (1 - gate)
        read = _attended(features, F.relu(self.key(slots)), F.relu(self.value(slots)), reading.mask)
        answer = torch.sigmoid(self.response(torch.cat([features, read], 1)))
        return torch.as_tensor(features * (1 - answer) + read * answer)


class WordAttention(nn.Module):
    """AttnGAN's attention on words (Xu et al. 2018, eq. 2): what is read joins the features unweighed."""

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(words, channels, bias=False)

    def forward(self, features: Tensor, reading: Reading) -> Tensor:
        """What every place reads, of the shape of ``features``."""
        projected = self.project(reading.words)
        return _attended(features, projected, projected, reading.mask)


class Refinement(nn.Module):
    """Features of one stage to those of the next, at twice the side."""

    def __init__(self, words: int, config: Gan) -> None:
        super().__init__()
        channels = config.channels
        self.memory = Memory(words, channels) if config.memory else None
        self.attention = None if config.memory else WordAttention(words, channels)
        self.residuals = nn.Sequential(*(Residual(2 * channels, config.norm) for _ in range(config.residual_blocks)))
        self.up = _doubling(2 * channels, channels, config.norm)

    def forward(self, features: Tensor, reading: Reading) -> Tensor:
        if self.memory is not None:
            new = self.memory(features, reading)
            both = torch.cat([new, new], 1)  # the width of AttnGAN's [features, read], as in the authors' code
        else:
            assert self.attention is not None
            both = torch.cat([features, self.attention(features, reading)], 1)
        return torch.as_tensor(self.up(self.residuals(both)))


class GanNetwork(nn.Module):
    """All generators.

    Args:
        config: the recipe's section. side: of the largest picture. words, sentence: widths of the reading.
    """

    def __init__(self, config: Gan, side: int, words: int, sentence: int) -> None:
        super().__init__()
        self.noise_size = config.noise + config.condition
        self._split = [config.noise, config.condition]
        self.augmentation = Augmentation(sentence, config.condition)
        smallest = side // 2 ** (config.stages - 1)
        self.first = First(config.noise + config.condition, config.channels, smallest, config.norm)
        self.refinements = nn.ModuleList(Refinement(words, config) for _ in range(config.stages - 1))
        self.painters = nn.ModuleList(
            nn.Conv2d(config.channels, 3, 3, padding=1, bias=False) for _ in range(config.stages)
        )
        orthogonal(self)

    def draw(self, reading: Reading, noise: Tensor) -> Drawing:
        """Pictures of every stage; ``noise`` is ``[N, noise_size]``, standard normal."""
        z, epsilon = torch.split(noise, self._split, 1)
        condition, mean, logvar = self.augmentation(reading.sentence, epsilon)
        features = self.first(torch.cat([condition, z], 1))
        pictures = [torch.tanh(self.painters[0](features).float())]
        for refine, paint in zip(self.refinements, list(self.painters)[1:], strict=True):
            features = refine(features, reading)
            pictures.append(torch.tanh(paint(features).float()))
        return Drawing(pictures, mean, logvar)

    def forward(self, reading: Reading, noise: Tensor) -> Tensor:
        """The largest pictures ``[N, 3, side, side]`` in -1..1."""
        return self.draw(reading, noise).pictures[-1]


def orthogonal(module: nn.Module) -> None:
    """Orthogonal matrices and filters, norms near 1: how the authors' code starts."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)


def _attended(features: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """What every place ``[N, C, H, W]`` reads of ``[N, T, C]``: a softmax over the words that are there."""
    places = features.flatten(2).transpose(1, 2)
    scores = (places @ keys.transpose(1, 2)).float().masked_fill(~mask[:, None], float("-inf"))
    read = torch.softmax(scores, 2).to(values.dtype) @ values
    return read.transpose(1, 2).reshape(features.shape)
