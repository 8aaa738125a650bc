"""The order of samples: a pure function of (seed, epoch, step), whatever the number of workers.

The epochs' permutations, laid end to end, make one endless line; step ``s`` with global batch ``b`` takes
places ``s*b .. s*b+b-1`` of it, and rank ``r`` of ``w`` takes the ``r``-th of ``w`` equal runs of those. The
whole state is the number of steps done, so a resumed or re-sized run sees the same pictures in the same order.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from components.contracts.errors import TrainingError

Indices = npt.NDArray[np.int64]


class Order:
    """Order of ``samples`` samples in global batches of ``batch_size``.

    Args:
        samples: number of samples in the training set, at least 1.
        batch_size: samples of one step over all ranks; may be larger than ``samples``.
        seed: any non-negative integer.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        if samples < 1 or batch_size < 1:
            raise TrainingError(
                f"{samples} training samples in batches of {batch_size}",
                expected="at least one of each",
                remedy="look at the dataset's dropped counts and at the batch sizes of the recipe",
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def batch(self, step: int) -> Indices:
        """Sample indices (int64, 0 .. samples-1) of the whole global batch of ``step`` (0-based)."""
        place, end = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while place < end:
            epoch, offset = divmod(place, self.samples)
            taken = self._order_of(epoch)[offset : offset + end - place]
            parts.append(taken)
            place += len(taken)
        return np.concatenate(parts)

    def _order_of(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.samples).astype(np.int64)
            self._epoch = epoch
        return self._permutation

    def digest(self, steps: int) -> str:
        """SHA-256 (hex) over every index of steps ``0 .. steps-1``: equal if two runs saw the same order."""
        sha = hashlib.sha256()
        for step in range(steps):
            sha.update(self.batch(step).astype("<i8").tobytes())
        return sha.hexdigest()


def share(batch_size: int, rank: int, world: int) -> slice:
    """Where in the global batch the samples of ``rank`` lie.

    Raises:
        TrainingError: the batch cannot be split evenly.
    """
    if batch_size % world:
        raise TrainingError(
            f"A global batch of {batch_size} cannot be split among {world} workers",
            expected=f"a multiple of {world}",
            remedy="change the section's batch_size or run.workers",
        )
    each = batch_size // world
    return slice(rank * each, (rank + 1) * each)


def steps_for(images: int, batch_size: int) -> int:
    """Steps that show at least ``images`` pictures."""
    return max(1, -(-images // batch_size))
