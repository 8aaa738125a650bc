"""Exponential moving average of weights, kept on whatever part of them this rank holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """Average ``a <- d a + (1 - d) w`` of ``weights`` after each step, in fp32.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` with ``n`` updates done, so that the random
    beginning is soon forgotten. With ``length`` the average has a power-function profile instead (Karras et al. 2024,
    "Analyzing and improving the training dynamics of diffusion models", sec. 3.1): its width is that share of the
    training so far, at any time.

    Args:
        weights: what this rank keeps of the fp32 weights (ZeRO parts): the average is cut alike.
        decay: of the exponential profile; unused with ``length``.
        length: relative standard deviation of the power-function profile, 0 < length < 0.28, e.g. 0.1.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float, length: float | None = None) -> None:
        self.decay = decay
        self._power = None if length is None else power_of(length)
        self.updates = 0
        self.averages = [w.detach().to(torch.float32, copy=True) for w in weights]

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor]) -> None:
        """Take in the weights after a step; same order and shapes as at the start."""
        torch._foreach_lerp_(self.averages, [w.detach().to(torch.float32) for w in weights], 1 - self._decay())
        self.updates += 1

    def _decay(self) -> float:
        """Of the next update."""
        if self._power is not None:
            return float((1 - 1 / (self.updates + 1)) ** (self._power + 1))
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def restore(self, updates: int, averages: Sequence[Tensor]) -> None:
        """Continue after so many updates with these averages."""
        self.updates = updates
        for mine, theirs in zip(self.averages, averages, strict=True):
            mine.copy_(theirs)


def power_of(length: float) -> float:
    """The exponent gamma whose profile has the relative standard deviation ``length`` (Karras et al. 2024, appendix C).

    ``length = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))``, solved by bisection; it falls with gamma.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        spread = ((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) ** 0.5
        low, high = (middle, high) if spread > length else (low, middle)
    return (low + high) / 2
