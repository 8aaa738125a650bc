"""Each distance against a plain loop, a library, or a case that can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from components.evaluation.distances import (
    clip_discrepancy,
    density_coverage,
    diversity,
    kernel_distance,
    memorised,
    nearest,
)

RNG = np.random.default_rng(3)
REAL, DRAWN = RNG.normal(size=(60, 6)), RNG.normal(0.4, 1.2, size=(50, 6))


def test_kernel_distance_against_loops() -> None:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(REAL), len(DRAWN)
    expected = (
        sum(k(REAL[i], REAL[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        + sum(k(DRAWN[i], DRAWN[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
        - 2 * sum(k(a, b) for a in REAL for b in DRAWN) / (n * m)
    )
    found = kernel_distance(REAL, DRAWN)
    assert found.value == pytest.approx(expected) and found.low < found.value < found.high and found.n == m


def test_kernel_distance_is_unbiased_and_its_interval_covers() -> None:
    rng = np.random.default_rng(5)
    found = [kernel_distance(rng.normal(size=(80, 4)), rng.normal(size=(80, 4)), seed=i) for i in range(60)]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values)), "zero for equal distributions, on average"
    assert np.mean([f.low <= 0 <= f.high for f in found]) >= 0.85


def test_clip_discrepancy_by_hand() -> None:
    assert clip_discrepancy([[2.0, 0.0]], [[5.0, 0.0]]) == 0.0, "directions count, lengths do not"
    expected = 1000 * (2 - 2 * math.exp(-2 / 200))  # two unit vectors at a right angle
    assert clip_discrepancy([[1.0, 0.0]], [[0.0, 3.0]]) == pytest.approx(expected)


def test_density_and_coverage_against_loops() -> None:
    k = 3
    away = np.sort(cdist(REAL, REAL), axis=1)[:, k]
    cross = cdist(DRAWN, REAL)
    density, covered = density_coverage(REAL, DRAWN, k)
    assert density == pytest.approx([(row <= away).sum() / k for row in cross])
    assert covered == pytest.approx((cross.min(0) <= away).astype(float))
    same, all_covered = density_coverage(REAL, REAL, k)
    assert all_covered.mean() == 1.0 and same.mean() >= 1.0
    far = density_coverage(REAL, DRAWN + 1e3, k)
    assert far[0].mean() == far[1].mean() == 0.0
    with pytest.raises(ValueError, match="more than 5"):
        density_coverage(REAL[:5], DRAWN)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000))
def test_nearest_is_the_nearest(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, among = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    at, away = nearest(queries, among)
    expected = cdist(queries, among)
    assert away == pytest.approx(expected.min(1), abs=1e-6)
    assert expected[np.arange(n), at] == pytest.approx(expected.min(1), abs=1e-6)


def test_a_model_that_copies_is_caught_and_one_that_does_not_is_not() -> None:
    rng = np.random.default_rng(8)
    trained, held_out, honest = (rng.normal(size=(size, 5)) for size in (2000, 2000, 1000))
    base = nearest(held_out, trained)[1]
    hits, share = memorised(nearest(honest, trained)[1], base)
    assert share.value < 0.03 and hits.sum() == round(share.value * 1000)
    copies = np.concatenate([trained[:300] + 1e-4, honest[300:]])
    assert memorised(nearest(copies, trained)[1], base)[1].value == pytest.approx(0.3, abs=0.03)


def test_diversity_of_the_pictures_of_a_prompt() -> None:
    east, north, west = [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]
    found = diversity([east, east, north, west, north], ["a", "a", "b", "b", "alone"])
    assert found == pytest.approx([0.0, 1.0])
    assert diversity([east, west, north], ["c"] * 3) == pytest.approx([(2 + 1 + 1) / 3])
