"""The order of samples: a pure function of (seed, epoch, step), whatever the number of workers.

The epochs' permutations, laid end to end, make one endless line; step ``s`` with global batch ``b`` takes
places ``s*b .. s*b+b-1`` of it, and rank ``r`` of ``w`` takes the ``r``-th of ``w`` equal runs of those. The
whole state is the number of steps done, so a resumed or re-sized run sees the same pictures in the same order.

Where pictures are of several sizes, a batch holds one size only: every bucket has such a line of its own, and the
buckets take turns in proportion to their sizes. Batch ``j`` of a bucket of ``n`` samples falls due at a random
moment of its interval ``j/n .. (j+1)/n``, and the batches go in the order of those moments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from components.contracts.errors import TrainingError

Indices = npt.NDArray[np.int64]


class Order:
    """Order of samples in global batches of ``batch_size``, each of one bucket.

    Args:
        samples: number of samples in the training set, or in each bucket of it; the buckets' samples are
            numbered one bucket after the other.
        batch_size: samples of one step over all ranks; may be larger than ``samples``.
        seed: any non-negative integer.
    """

    def __init__(self, samples: int | Sequence[int], batch_size: int, seed: int) -> None:
        sizes = [samples] if isinstance(samples, int) else list(samples)
        if not sizes or min(sizes) < 1 or batch_size < 1:
            raise TrainingError(
                f"{samples} training samples in batches of {batch_size}",
                expected="at least one of each",
                remedy="look at the dataset's dropped counts and at the batch sizes of the recipe",
            )
        self.samples, self.batch_size, self.seed = sum(sizes), batch_size, seed
        self._lines = [_Line(size, seed, bucket) for bucket, size in enumerate(sizes)]
        self._firsts = [sum(sizes[:bucket]) for bucket in range(len(sizes))]
        self._turns = np.empty(0, np.int64), np.empty(0, np.int64)

    def batch(self, step: int) -> Indices:
        """Sample indices (int64, 0 .. samples-1) of the whole global batch of ``step`` (0-based)."""
        bucket, turn = self._turn(step)
        return self._lines[bucket].run(turn * self.batch_size, self.batch_size) + self._firsts[bucket]

    def _turn(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many batches of that bucket came before."""
        if len(self._lines) == 1:
            return 0, step
        epochs = 1.0
        while len(self._turns[0]) <= step:
            epochs *= 2
            self._turns = self._schedule(epochs)
        return int(self._turns[0][step]), int(self._turns[1][step])

    def _schedule(self, epochs: float) -> tuple[Indices, Indices]:
        """Bucket and turn of all batches that fall due within so many epochs."""
        buckets, turns, moments = [], [], []
        for bucket, line in enumerate(self._lines):
            count = int(np.ceil(epochs * line.samples / self.batch_size)) + 1
            # its beginning is the same for any count
            jitter = np.random.default_rng([self.seed, 0, bucket, 1]).random(count)
            due = (np.arange(count) + jitter) * self.batch_size / line.samples
            within = due < epochs
            turns.append(np.flatnonzero(within))
            moments.append(due[within])
            buckets.append(np.full(len(turns[-1]), bucket))
        order = np.argsort(np.concatenate(moments), kind="stable")
        return np.concatenate(buckets)[order].astype(np.int64), np.concatenate(turns)[order].astype(np.int64)

    def digest(self, steps: int) -> str:
        """SHA-256 (hex) over every index of steps ``0 .. steps-1``: equal if two runs saw the same order."""
        sha = hashlib.sha256()
        for step in range(steps):
            sha.update(self.batch(step).astype("<i8").tobytes())
        return sha.hexdigest()


class _Line:
    """The epochs' permutations of one bucket's samples, laid end to end."""

    def __init__(self, samples: int, seed: int, bucket: int) -> None:
        self.samples = samples
        self._seed, self._bucket = seed, [bucket] if bucket else []
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def run(self, place: int, length: int) -> Indices:
        """``length`` samples from ``place`` on."""
        parts, end = [], place + length
        while place < end:
            epoch, offset = divmod(place, self.samples)
            taken = self._order_of(epoch)[offset : offset + end - place]
            parts.append(taken)
            place += len(taken)
        return np.concatenate(parts)

    def _order_of(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            draws = np.random.default_rng([self._seed, epoch, *self._bucket])
            self._permutation = draws.permutation(self.samples).astype(np.int64)
            self._epoch = epoch
        return self._permutation


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
