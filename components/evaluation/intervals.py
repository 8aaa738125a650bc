"""Confidence intervals: of a share, of a mean, and of a paired difference."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A number with the bounds of its interval and the count of samples behind it."""

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to six digits so that the last bits of a machine's arithmetic do not show."""
        return {k: v if k == "n" else float(f"{v:.6g}") for k, v in asdict(self).items()}


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share of successes with its two-sided score interval (Wilson 1927).

    Raises:
        ValueError: ``n`` is 0 or ``successes`` is not within 0..n.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n and n > 0, found {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at 0 and n the bound is exactly 0 and 1; rounding must not leave the estimate outside its own interval
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def bootstrap_mean(values: npt.ArrayLike, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Mean with its two-sided percentile bootstrap interval (Efron 1979), deterministic by ``seed``."""
    sample = np.asarray(values, dtype=np.float64)
    means = _resampled_means(sample, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(sample.mean()), float(low), float(high), len(sample))


def paired_difference(
    challenger: npt.ArrayLike, champion: npt.ArrayLike, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of ``challenger - champion`` over pairs, with a bootstrap interval for values in 0..1.

    ``low`` and ``high`` are each a *one-sided* bound at ``confidence``: the true difference lies below
    ``low`` with probability at most ``1 - confidence``. One gained and one lost pseudo-pair are added before
    resampling, as Bonett and Price (2012) do for paired shares: without them few or no discordant pairs
    would give an interval of no width, and three equal answers would prove equality.

    Raises:
        ValueError: the two do not have the same length, or are empty.
    """
    one, two = np.asarray(challenger, np.float64), np.asarray(champion, np.float64)
    if one.shape != two.shape or one.ndim != 1 or not one.size:
        raise ValueError(f"expected two equally long lists of values, found shapes {one.shape} and {two.shape}")
    gain = one - two
    means = _resampled_means(np.concatenate([gain, [1.0, -1.0]]), seed)
    low, high = np.quantile(means, [1 - confidence, confidence])
    value = float(gain.mean())
    return Estimate(value, min(value, float(low)), max(value, float(high)), len(gain))


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """``one / other`` of two independent numbers >= 0, its width by the propagation of errors, its ``n`` of ``one``.

    A number against nothing is as large as a float may be, and nothing against nothing is 1.
    """
    if other.value <= 0:
        value = 1.0 if one.value <= 0 else float(np.finfo(np.float64).max)
        return Estimate(value, value, value, one.n)
    halves = [(each.high - each.low) / 2 for each in (one, other)]
    value = one.value / other.value
    half = math.hypot(halves[0] / other.value, value * halves[1] / other.value)
    return Estimate(value, max(0.0, value - half), value + half, one.n)


def pairs_needed(discordant: float, margin: float, confidence: float = 0.95, power: float = 0.9) -> int:
    """Pairs at which two equally good models pass a non-inferiority test of this margin with that power.

    ``discordant`` is the share of pairs on which the two differ. Normal approximation, for planning.
    """
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    return math.ceil(z * z * max(discordant, 1e-9) / margin**2)


def _resampled_means(sample: Values, seed: int) -> Values:
    """Means of bootstrap resamples. Equal values are drawn together, which is exact and quick."""
    levels, counts = np.unique(sample, return_counts=True)
    drawn = np.random.default_rng([0xB007, seed]).multinomial(len(sample), counts / len(sample), RESAMPLES)
    return np.asarray(drawn @ levels / len(sample), dtype=np.float64)
