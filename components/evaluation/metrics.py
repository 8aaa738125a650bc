"""Metrics over features and embeddings, each from arrays alone.

Feature arrays are [N, d]; embeddings are rows of unit length. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.evaluation.intervals import Estimate

Matrix = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]
_QUICK = 1000  # side of a matrix whose eigenvalues take less than a second


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
    features: npt.ArrayLike, reference: Moments, confidence: float = 0.95, seed: int = 0, resamples: int | None = None
) -> Estimate:
    """Fréchet distance of ``features`` [N, d] to the reference, with its interval.

    The interval is the value plus and minus the normal quantile times the bootstrap's standard error: the
    bootstrap's own percentiles would lie too high, because the distance is biased upwards in small samples
    and a resample has fewer distinct members. The reference is taken as given: all models share it.

    Args:
        resamples: of the bootstrap; by default 60, and 20 where each takes seconds.
    """
    x = np.asarray(features, dtype=np.float64)
    root = _root(reference.covariance)
    value = _frechet(Moments.of(x), reference, root)
    rng = np.random.default_rng([0xF1D, seed])
    count = resamples or (60 if min(x.shape) <= _QUICK else 20)
    draws = rng.multinomial(len(x), [1 / len(x)] * len(x), count)
    again = _resampled(x, draws, reference, root)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(np.std(again, ddof=1))
    return Estimate(value, max(0.0, value - half), value + half, len(x))


def retrieved(
    images: npt.ArrayLike,
    texts: npt.ArrayLike,
    keys: Sequence[str],
    candidates: int,
    seed: int,
    pictures: Sequence[Hashable] | None = None,
) -> tuple[npt.NDArray[np.bool_], int]:
    """R-precision per picture (Xu et al. 2018, AttnGAN): is its own caption the nearest of ``candidates``?

    Args:
        images: picture embeddings [N, e].
        texts: embedding of each picture's own caption [N, e].
        keys: what each caption means; a caption that means the same as the true one is never a candidate.
        candidates: the true caption and ``candidates - 1`` others, fewer when there are not so many meanings.
        seed: of the draw of the others.
        pictures: of which picture each caption is, where pictures have several: no caption of a picture is a
            candidate against another one of it.

    Returns:
        Hits [N] (a tie is no hit), and how many candidates there were at most.

    Raises:
        ValueError: a picture has no candidates, see :func:`has_rivals`.
    """
    image, text = _unit(images), _unit(texts)
    if not has_rivals(keys, pictures):
        raise ValueError("expected captions of at least two meanings, and no picture that says all of them")
    meanings = sorted(set(keys))
    number = {key: i for i, key in enumerate(meanings)}
    own = np.array([number[key] for key in keys])
    first = np.unique(own, return_index=True)[1]  # one caption stands for each meaning
    said: dict[Hashable, set[int]] = {}
    for mine, picture in zip(own.tolist(), own.tolist() if pictures is None else pictures, strict=True):
        said.setdefault(picture, set()).add(mine)
    rng = np.random.default_rng([0x4B, seed])
    hits, most = np.zeros(len(keys), dtype=bool), 0
    for i, picture in enumerate(own.tolist() if pictures is None else pictures):
        true = sorted(said[picture])
        others = min(candidates - 1, len(meanings) - len(true))
        drawn = rng.choice(len(meanings) - len(true), others, replace=False)
        for left_out in true:
            drawn = drawn + (drawn >= left_out)
        rivals = text[first[drawn]]
        hits[i] = float(image[i] @ text[i]) > float((rivals @ image[i]).max())
        most = max(most, others + 1)
    return hits, most


def has_rivals(keys: Sequence[str], pictures: Sequence[Hashable] | None = None) -> bool:
    """Whether :func:`retrieved` has a wrong caption to offer to every picture."""
    said: dict[Hashable, set[str]] = {}
    for key, picture in zip(keys, keys if pictures is None else pictures, strict=True):
        said.setdefault(picture, set()).add(key)
    everything = len(set(keys))
    return bool(said) and all(len(some) < everything for some in said.values())


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


def _resampled(x: Matrix, draws: npt.NDArray[np.int64], reference: Moments, root: Matrix) -> list[float]:
    """The distance of each resample: ``draws`` says how often it has each row of ``x``, ``[resamples, N]``."""
    n = len(x)
    if n > x.shape[1]:
        return [_frechet(_weighted(x, counts), reference, root) for counts in draws]
    # fewer pictures than dimensions: the eigenvalues of R C R are those of the products of pictures, [n, n], too
    centre = x.mean(axis=0)
    moved = x - centre
    mapped = moved @ root
    products, squares = mapped @ mapped.T, (moved * moved).sum(1)
    found = []
    for counts in draws:
        mean = counts @ moved / n
        shift = centre + mean - reference.mean
        spread = (counts @ squares - n * (mean @ mean)) / max(n - 1, 1)
        at = np.flatnonzero(counts)
        along = products @ counts / n
        inner = products[np.ix_(at, at)] - along[at][:, None] - along[at][None] + counts @ along / n
        inner *= np.sqrt(np.outer(counts[at], counts[at])) / max(n - 1, 1)
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
        found.append(max(0.0, float(shift @ shift + spread + np.trace(reference.covariance) - 2 * overlap)))
    return found


def _weighted(x: Matrix, counts: npt.NDArray[np.int64]) -> Moments:
    mean = counts @ x / counts.sum()
    centred = x - mean
    return Moments(int(counts.sum()), mean, (centred * counts[:, None]).T @ centred)


def inception_score(
    probabilities: npt.ArrayLike, confidence: float = 0.95, seed: int = 0, resamples: int = 200
) -> Estimate:
    """Inception score (Salimans et al. 2016, sec. 4): ``exp(mean KL(p(y|x) || p(y)))``, with a bootstrap interval.

    1 when all pictures get the same answer, ``K`` when they are surely of all ``K`` classes alike. The interval is
    the value plus and minus the normal quantile times the bootstrap's standard error, as for the Fréchet distance.

    Args:
        probabilities: ``p(y|x)`` of every picture, ``[N, K]``, by whatever classifier the protocol names.

    Raises:
        ValueError: rows are no distributions.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not p.size or p.min() < 0 or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError(f"expected distributions [N, K], found shape {p.shape}")
    entropies = np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.0).sum(1)

    def score(weights: Matrix) -> float:
        marginal = weights @ p
        mixed = np.where(marginal > 0, marginal * np.log(np.maximum(marginal, 1e-300)), 0.0).sum()
        return float(np.exp(max(0.0, weights @ entropies - mixed)))

    n = len(p)
    value = score(np.full(n, 1 / n))
    draws = np.random.default_rng([0x15C0, seed]).multinomial(n, [1 / n] * n, resamples) / n
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(np.std([score(row) for row in draws], ddof=1))
    return Estimate(value, max(1.0, value - half), value + half, n)
