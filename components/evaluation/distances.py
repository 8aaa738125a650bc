"""Distances between sets of pictures beyond Fréchet's, and how unlike the pictures of one prompt are; float64."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.evaluation.intervals import Estimate
from components.evaluation.neighbours import Matrix, rows, squared_distances

_SUBSETS = 50
_LARGEST = 1000  # pictures of a subset, at most, as Bińkowski et al. took
_BLOCK = 1024


def kernel_distance(real: npt.ArrayLike, drawn: npt.ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Kernel Inception Distance (Bińkowski et al. 2018, "Demystifying MMD GANs", sec. 4): unbiased, may be below 0.

    Squared maximum mean discrepancy under the cubic kernel ``(x.y / d + 1)^3``. The interval is normal, its width
    from 50 subsets of half the pictures, at most 1000 (Politis and Romano 1994, subsampling).
    """
    x, y = rows(real), rows(drawn)
    return _subsampled(_unbiased, x, y, _unbiased(x, y), confidence, np.random.default_rng([0x41D, seed]))


def clip_discrepancy(real: npt.ArrayLike, drawn: npt.ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """CMMD (Jayasumana et al. 2024, "Rethinking FID", sec. 4) of unit embeddings [N, e]: >= 0.

    Squared maximum mean discrepancy under the Gaussian kernel of width 10, with the diagonals, times 1000, as the
    authors' code reckons it. The interval is made as that of :func:`kernel_distance`.
    """
    x, y = _unit(real), _unit(drawn)
    found = _subsampled(_gaussian, x, y, _gaussian(x, y), confidence, np.random.default_rng([0xC33D, seed]))
    return Estimate(found.value, max(0.0, found.low), found.high, found.n)


def diversity(embeddings: npt.ArrayLike, prompts: Sequence[Hashable]) -> Matrix:
    """For each prompt with several pictures, the mean cosine distance of its pairs, [P] in 0..2; 0: all alike."""
    x = _unit(embeddings)
    by_prompt: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(row)
    found = []
    for at in by_prompt.values():
        if (n := len(at)) > 1:
            total = x[at].sum(0)
            found.append(max(0.0, 1 - (total @ total - n) / (n * (n - 1))))
    return np.asarray(found, np.float64)


def _subsampled(
    distance: Callable[[Matrix, Matrix], float],
    x: Matrix,
    y: Matrix,
    value: float,
    confidence: float,
    rng: np.random.Generator,
) -> Estimate:
    """The value with a normal interval, from how much the distance varies over small subsets of both."""
    n = min(len(x), len(y))
    size = min(n // 2, _LARGEST)
    if size < 2:
        return Estimate(value, value, value, len(y))
    found = [
        distance(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
        for _ in range(_SUBSETS)
    ]
    error = float(np.std(found, ddof=1)) * np.sqrt(size / n) * NormalDist().inv_cdf(0.5 + confidence / 2)
    return Estimate(value, value - error, value + error, len(y))


def _unbiased(x: Matrix, y: Matrix) -> float:
    n, m, d = len(x), len(y), x.shape[1]
    if n < 2 or m < 2:
        raise ValueError(f"expected at least two pictures of each, found {n} and {m}")

    def total(a: Matrix, b: Matrix) -> float:
        return float(sum(((a[i : i + _BLOCK] @ b.T / d + 1) ** 3).sum() for i in range(0, len(a), _BLOCK)))

    def own(a: Matrix) -> float:
        return float(((np.einsum("nd,nd->n", a, a) / d + 1) ** 3).sum())

    within_x, within_y = (total(x, x) - own(x)) / (n * (n - 1)), (total(y, y) - own(y)) / (m * (m - 1))
    return within_x + within_y - 2 * total(x, y) / (n * m)


def _gaussian(x: Matrix, y: Matrix) -> float:
    def mean(a: Matrix, b: Matrix) -> float:
        total = sum(float(np.exp(-block / (2 * 10.0**2)).sum()) for block in squared_distances(a, b))
        return total / (len(a) * len(b))

    return max(0.0, 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))


def _unit(embeddings: npt.ArrayLike) -> Matrix:
    x = rows(embeddings)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
