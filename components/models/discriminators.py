"""The discriminators of AttnGAN and DM-GAN: one a resolution, each with a conditional and an unconditional answer.

Zhang et al. 2018, "StackGAN++", sec. 3.2: a joint approximation of both distributions. Layer sizes follow the
DM-GAN authors' code.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from components.contracts.recipe import Gan
from components.models.dm_gan import orthogonal

_DEEPEST = 8  # times the first layer's channels, what the answers are read from


class Answers(NamedTuple):
    """Logits ``[N]``: how real a picture looks, and how real with this sentence."""

    alone: Tensor
    joint: Tensor


class Discriminator(nn.Module):
    """Pictures of one side to features ``[N, C, 4, 4]``, and those to logits.

    Args:
        config: the recipe's section. side: of the pictures, a power of two of at least 8.
        sentence: width of the sentence.
    """

    def __init__(self, config: Gan, side: int, sentence: int) -> None:
        super().__init__()
        first = config.discriminator_channels

        def layer(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(before, after, kernel, stride, 1)
            orthogonal(convolution)  # before the norm, which starts its power iteration from the weights it finds
            return [spectral_norm(convolution) if config.spectral_norm else convolution, nn.LeakyReLU(0.2)]

        halvings = (side // 4).bit_length() - 1
        widths = [3, *(first * 2**i for i in range(halvings))]
        layers = [part for a, b in pairwise(widths) for part in layer(a, b, 4, 2)]
        width = widths[-1]
        while width > first * _DEEPEST:  # sides above 64
            layers += layer(width, width // 2, 3, 1)
            width //= 2
        self.trunk = nn.Sequential(*layers)
        self.joint = nn.Sequential(*layer(width + sentence, width, 3, 1))
        self.answer_alone = nn.Conv2d(width, 1, 4)
        self.answer_joint = nn.Conv2d(width, 1, 4)
        orthogonal(self.answer_alone)
        orthogonal(self.answer_joint)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features ``[N, C, 4, 4]`` of pictures in -1..1."""
        return torch.as_tensor(self.trunk(pictures))

    def alone(self, features: Tensor) -> Tensor:
        """Logits ``[N]`` without the sentence."""
        return torch.as_tensor(self.answer_alone(features).flatten().float())

    def together(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Logits ``[N]`` with the sentence ``[N, E]``."""
        scaled = F.normalize(sentence.float(), dim=-1) * sentence.shape[-1] ** 0.5
        spread = scaled[:, :, None, None].expand(-1, -1, *features.shape[2:]).to(features.dtype)
        return torch.as_tensor(self.answer_joint(self.joint(torch.cat([features, spread], 1))).flatten().float())

    def answers(self, pictures: Tensor, sentence: Tensor) -> Answers:
        """Both logits of the pictures."""
        features = self(pictures)
        return Answers(self.alone(features), self.together(features, sentence))


def discriminators_for(config: Gan, side: int, sentence: int) -> nn.ModuleList:
    """One discriminator for every stage's pictures, the smallest first."""
    sides = [side // 2**i for i in reversed(range(config.stages))]
    return nn.ModuleList(Discriminator(config, each, sentence) for each in sides)
