"""Exponential moving average of weights, kept on whatever part of them this rank holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """Average ``a <- d a + (1 - d) w`` of ``weights`` after each step, in fp32.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` with ``n`` updates done, so that the random
    beginning is soon forgotten. Under ZeRO-3 ``weights`` are this rank's shards: the average is sharded alike.
    """

    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages = [w.detach().to(torch.float32).clone() for w in weights]

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor]) -> None:
        """Take in the weights after a step; same order and shapes as at the start."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, [w.detach().to(torch.float32) for w in weights], 1 - decay)
        self.updates += 1

    def state(self) -> tuple[int, list[Tensor]]:
        """What a checkpoint keeps."""
        return self.updates, self.averages

    def restore(self, updates: int, averages: Sequence[Tensor]) -> None:
        """Continue from :meth:`state`."""
        self.updates = updates
        for mine, theirs in zip(self.averages, averages, strict=True):
            mine.copy_(theirs)
