"""Metrics over features and embeddings, each from arrays alone.

Feature arrays are [N, d]; embeddings are rows of unit length. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.evaluation.intervals import Estimate

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, mean [d] and sum of centred outer products [d, d] of features; samples may be merged."""

    count: int
    mean: Matrix
    scatter: Matrix

    @classmethod
    def of(cls, features: npt.ArrayLike) -> Moments:
        """Moments of features [N, d], N >= 1."""
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or not len(x):
            raise ValueError(f"expected features [N, d] with N >= 1, found shape {x.shape}")
        mean = x.mean(axis=0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def merge(self, other: Moments) -> Moments:
        """Moments of both samples together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), scatter)

    @property
    def covariance(self) -> Matrix:
        """Unbiased covariance [d, d]; zero for a single sample."""
        return self.scatter / max(self.count - 1, 1)


def frechet(one: Moments, other: Moments) -> float:
    """Squared Fréchet distance of two normal distributions (Dowson and Landau 1982), >= 0.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)``. The symmetric form has real eigenvalues, so no
    imaginary part has to be thrown away as with ``sqrtm(C1 C2)``, and singular covariances are no trouble.
    """
    return _frechet(one, other, _root(other.covariance))


def frechet_estimate(
    features: npt.ArrayLike, reference: Moments, confidence: float = 0.95, seed: int = 0, resamples: int = 60
) -> Estimate:
    """Fréchet distance of ``features`` [N, d] to the reference, with its interval.

    The interval is the value plus and minus the normal quantile times the bootstrap's standard error: the
    bootstrap's own percentiles would lie too high, because the distance is biased upwards in small samples
    and a resample has fewer distinct members. The reference is taken as given: all models share it.
    """
    x = np.asarray(features, dtype=np.float64)
    root = _root(reference.covariance)
    value = _frechet(Moments.of(x), reference, root)
    rng = np.random.default_rng([0xF1D, seed])
    draws = rng.multinomial(len(x), [1 / len(x)] * len(x), resamples)
    again = [_frechet(_weighted(x, counts), reference, root) for counts in draws]
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(np.std(again, ddof=1))
    return Estimate(value, max(0.0, value - half), value + half, len(x))


def retrieved(
    images: npt.ArrayLike, texts: npt.ArrayLike, keys: Sequence[str], candidates: int, seed: int
) -> tuple[npt.NDArray[np.bool_], int]:
    """R-precision per picture (Xu et al. 2018, AttnGAN): is its own caption the nearest of ``candidates``?

    Args:
        images: picture embeddings [N, e].
        texts: embedding of each picture's own caption [N, e].
        keys: what each caption means; a caption that means the same as the true one is never a candidate.
        candidates: the true caption and ``candidates - 1`` others, fewer when there are not so many meanings.
        seed: of the draw of the others.

    Returns:
        Hits [N] (a tie is no hit), and how many candidates there were.

    Raises:
        ValueError: all captions mean the same.
    """
    image, text = _unit(images), _unit(texts)
    meanings = sorted(set(keys))
    if len(meanings) < 2:
        raise ValueError("expected captions of at least two meanings, found one")
    number = {key: i for i, key in enumerate(meanings)}
    own = np.array([number[key] for key in keys])
    first = np.unique(own, return_index=True)[1]  # one caption stands for each meaning
    others = min(candidates, len(meanings)) - 1
    rng = np.random.default_rng([0x4B, seed])
    hits = np.zeros(len(keys), dtype=bool)
    for i, mine in enumerate(own):
        drawn = rng.choice(len(meanings) - 1, others, replace=False)
        rivals = text[first[drawn + (drawn >= mine)]]
        hits[i] = float(image[i] @ text[i]) > float((rivals @ image[i]).max())
    return hits, others + 1


def clip_scores(images: npt.ArrayLike, texts: npt.ArrayLike) -> Matrix:
    """CLIP score of each pair [N]: 100 times the cosine, at least 0 (as torchmetrics does)."""
    return np.asarray(np.maximum(100.0 * np.einsum("ne,ne->n", _unit(images), _unit(texts)), 0.0))


def _unit(rows: npt.ArrayLike) -> Matrix:
    x = np.asarray(rows, dtype=np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _root(matrix: Matrix) -> Matrix:
    """Symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _frechet(one: Moments, other: Moments, root_of_other: Matrix) -> float:
    shift = one.mean - other.mean
    inner = root_of_other @ one.covariance @ root_of_other
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
    return max(0.0, float(shift @ shift + np.trace(one.covariance) + np.trace(other.covariance) - 2 * overlap))


def _weighted(x: Matrix, counts: npt.NDArray[np.int64]) -> Moments:
    mean = counts @ x / counts.sum()
    centred = x - mean
    return Moments(int(counts.sum()), mean, (centred * counts[:, None]).T @ centred)
