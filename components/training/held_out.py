"""The held-out loss: the same pictures, noise and times at every point of every training on a dataset.

A training loss falls and rises with the times and pictures that a step happens to draw. Here they are fixed: times
are stratified and equidistant, as in MLPerf Training's text-to-image benchmark (v5.1, Flux.1), noise comes from fixed
seeds, and batches do not depend on the number of workers, so that two trainings, or two points of one, compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

BATCH = 16  # pictures; whatever the number of workers
_SEED = 1  # of the choice of pictures; never the recipe's


class Evaluates(Protocol):
    """What runs a batch through the module in training: see ``components.training.turns``."""

    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and scalars of this rank's batch, without gradients."""
        ...


def fixed_times(count: int) -> Tensor:
    """Times ``[count]`` in the middle of ``count`` equal parts of 0..1."""
    return (torch.arange(count) + 0.5) / count


def choose(sizes: Sequence[int], limit: int, batch: int = BATCH) -> list[npt.NDArray[np.int64]]:
    """At most ``limit`` samples, in batches of one bucket each.

    Args:
        sizes: samples of every bucket; samples are numbered bucket after bucket.
    """
    total = sum(sizes)
    chosen = np.sort(np.random.default_rng(_SEED).permutation(total)[:limit])
    ends = np.cumsum(sizes)
    found = []
    for first, end in zip(ends - np.asarray(sizes), ends, strict=True):
        bucket = chosen[(chosen >= first) & (chosen < end)]
        found += [bucket[at : at + batch] for at in range(0, len(bucket), batch)]
    return found


def is_empty(task: Any) -> bool:
    """Whether a task's split of its dataset has no rows."""
    from components.training.samples import table

    folder = getattr(task, "dataset", None)
    return folder is not None and table(folder, ["height"], task.split).num_rows == 0


class HeldOut:
    """Held-out batches of this rank.

    Args:
        batches: with the weight of each, the number of its pictures; as many on every rank, since under ZeRO-3
            a forward is a matter of all ranks. A rank that has none left repeats one with weight 0.
    """

    def __init__(self, batches: list[tuple[dict[str, Tensor], int]]) -> None:
        self._batches = batches

    @classmethod
    def open(cls, task: Any, module: nn.Module, device: torch.device, limit: int, rank: int, world: int) -> HeldOut:
        """Of a task made by another one's ``held_out()``; its samples are read once and let go."""
        picks = choose(task.open(module, device), limit)
        mine = []
        for turn in range(0, len(picks), world):
            at = turn + rank
            number = at if at < len(picks) else 0
            draws = torch.Generator().manual_seed(number)
            batch = task.batch(picks[number], slice(None), draws)
            mine.append((batch, len(picks[number]) if at < len(picks) else 0))
        return cls(mine)

    def measure(self, players: Evaluates, device: torch.device) -> dict[str, float]:
        """Loss and scalars, averaged over the pictures of all ranks. Every rank must call."""
        sums: dict[str, Tensor] = {}
        count = 0
        for batch, weight in self._batches:
            for key, value in players.evaluate(batch).items():
                term = value.detach().double().to(device) * weight
                sums[key] = sums[key] + term if key in sums else term
            count += weight
        row = torch.stack([*sums.values(), torch.tensor(float(count), dtype=torch.float64, device=device)])
        if dist.is_initialized():
            dist.all_reduce(row)
        *totals, pictures = row.tolist()
        return {key: total / pictures for key, total in zip(sums, totals, strict=True)}
