"""Distances between sets of pictures beyond Fréchet's, and what a single picture is near to; float64, exact.

Features are [N, d]. Neighbours are found by comparing all pairs, block by block, so memory stays at one block.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.evaluation.intervals import Estimate, wilson

Matrix = npt.NDArray[np.float64]
_SUBSETS = 50


def kernel_distance(real: npt.ArrayLike, drawn: npt.ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Kernel Inception Distance (Bińkowski et al. 2018, "Demystifying MMD GANs", sec. 4): unbiased, may be below 0.

    Squared maximum mean discrepancy under the cubic kernel ``(x.y / d + 1)^3``. The interval is normal, its width
    from 50 subsets of half the pictures (Politis and Romano 1994, subsampling).
    """
    x, y = _rows(real), _rows(drawn)
    value = _unbiased(x, y)
    n = min(len(x), len(y))
    half = n // 2
    if half < 2:
        return Estimate(value, value, value, len(y))
    rng = np.random.default_rng([0x41D, seed])
    found = [
        _unbiased(x[rng.choice(len(x), half, replace=False)], y[rng.choice(len(y), half, replace=False)])
        for _ in range(_SUBSETS)
    ]
    error = float(np.std(found, ddof=1)) * np.sqrt(half / n) * NormalDist().inv_cdf(0.5 + confidence / 2)
    return Estimate(value, value - error, value + error, len(y))


def clip_discrepancy(real: npt.ArrayLike, drawn: npt.ArrayLike) -> float:
    """CMMD (Jayasumana et al. 2024, "Rethinking FID", sec. 4) of unit embeddings [N, e]: >= 0.

    Squared maximum mean discrepancy under the Gaussian kernel of width 10, with the diagonals, times 1000, as the
    authors' code reckons it.
    """
    x, y = _unit(real), _unit(drawn)

    def kernel(a: Matrix, b: Matrix) -> float:
        squared = (a * a).sum(1)[:, None] + (b * b).sum(1)[None, :] - 2 * (a @ b.T)
        return float(np.exp(-np.maximum(squared, 0) / (2 * 10.0**2)).mean())

    return max(0.0, 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)))


def density_coverage(real: npt.ArrayLike, drawn: npt.ArrayLike, neighbours: int = 5) -> tuple[Matrix, Matrix]:
    """Density of each drawn and coverage of each real picture (Naeem et al. 2020, "Reliable Fidelity and Diversity").

    A real picture's ball reaches to its ``neighbours``-th nearest other real picture. Density of a drawn picture is
    the number of balls it lies in, over ``neighbours`` (it may exceed 1, and is about 1 for the same distribution);
    a real picture is covered (1.0, else 0.0) when its ball holds a drawn picture. The metrics are their means.

    Raises:
        ValueError: there are not more than ``neighbours`` real pictures.
    """
    x, y = _rows(real), _rows(drawn)
    if len(x) <= neighbours:
        raise ValueError(f"expected more than {neighbours} real pictures, found {len(x)}")
    radii = np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in _blocks(x, x)])
    density = np.concatenate([(block <= radii).sum(1) / neighbours for block in _blocks(y, x)])
    covered = np.concatenate([block.min(1) for block in _blocks(x, y)]) <= radii
    return density.astype(np.float64), covered.astype(np.float64)


def nearest(queries: npt.ArrayLike, among: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], Matrix]:
    """Row of the nearest of ``among`` and its Euclidean distance, for each query."""
    at, away = [], []
    for block in _blocks(_rows(queries), _rows(among)):
        found = block.argmin(1)
        at.append(found)
        away.append(np.sqrt(block[np.arange(len(block)), found]))
    return np.concatenate(at).astype(np.int64), np.concatenate(away)


def memorised(
    drawn: npt.ArrayLike, held_out: npt.ArrayLike, level: float = 0.01
) -> tuple[npt.NDArray[np.bool_], Estimate]:
    """Which drawn pictures lie nearer to a training picture than held-out pictures do, and their share.

    After the data-copying test of Meehan, Chaudhuri and Dasgupta 2020: distances to the nearest training picture are
    compared with those of real pictures that were not trained on. A picture counts as memorised below the ``level``
    quantile of the latter, so a model that learnt the distribution and copies nothing has a share of about ``level``.

    Args:
        drawn, held_out: distances to the nearest training picture, [N] and [M].
    """
    mine, theirs = np.asarray(drawn, np.float64), np.asarray(held_out, np.float64)
    hits = mine < np.quantile(theirs, level)
    return hits, wilson(int(hits.sum()), len(hits))


def diversity(embeddings: npt.ArrayLike, prompts: Sequence[Hashable]) -> Matrix:
    """For each prompt with several pictures, the mean cosine distance of its pairs, [P] in 0..2; 0: all alike."""
    x = _unit(embeddings)
    by_prompt: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(row)
    found = []
    for rows in by_prompt.values():
        if (n := len(rows)) > 1:
            total = x[rows].sum(0)
            found.append(1 - (total @ total - n) / (n * (n - 1)))
    return np.asarray(found, np.float64)


def _rows(features: npt.ArrayLike) -> Matrix:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"expected features [N, d] with N >= 1, found shape {x.shape}")
    return x


def _unit(rows: npt.ArrayLike) -> Matrix:
    x = _rows(rows)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _unbiased(x: Matrix, y: Matrix) -> float:
    n, m, d = len(x), len(y), x.shape[1]
    if n < 2 or m < 2:
        raise ValueError(f"expected at least two pictures of each, found {n} and {m}")

    def kernel(a: Matrix, b: Matrix) -> Matrix:
        return np.asarray((a @ b.T / d + 1) ** 3)

    own_x, own_y = kernel(x, x), kernel(y, y)
    within_x = (own_x.sum() - np.trace(own_x)) / (n * (n - 1))
    within_y = (own_y.sum() - np.trace(own_y)) / (m * (m - 1))
    return float(within_x + within_y - 2 * kernel(x, y).mean())


def _blocks(one: Matrix, other: Matrix, size: int = 1024) -> Iterator[Matrix]:
    """Squared distances of rows of ``one`` to all of ``other``, ``size`` rows at a time."""
    lengths = (other * other).sum(1)
    for start in range(0, len(one), size):
        part = one[start : start + size]
        yield np.maximum((part * part).sum(1)[:, None] + lengths - 2 * (part @ other.T), 0)
