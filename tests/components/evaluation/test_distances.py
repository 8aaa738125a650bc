"""Each distance against a plain loop, a library, or a case that can be computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from components.evaluation.distances import clip_discrepancy, diversity, kernel_distance

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
    assert clip_discrepancy([[2.0, 0.0]], [[5.0, 0.0]]).value == 0.0, "directions count, lengths do not"
    expected = 1000 * (2 - 2 * math.exp(-2 / 200))  # two unit vectors at a right angle
    assert clip_discrepancy([[1.0, 0.0]], [[0.0, 3.0]]).value == pytest.approx(expected)


def test_clip_discrepancy_against_loops() -> None:
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (REAL, DRAWN))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([[math.exp(-float((p - q) @ (p - q)) / 200) for q in b] for p in a]))

    found = clip_discrepancy(REAL, DRAWN)
    assert found.value == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))
    assert found.low < found.value < found.high and found.n == len(DRAWN)


def test_kernel_distance_equals_torchmetrics() -> None:
    import torch
    from torchmetrics.image.kid import poly_mmd

    theirs = poly_mmd(torch.from_numpy(REAL[:50]), torch.from_numpy(DRAWN))
    assert kernel_distance(REAL[:50], DRAWN).value == pytest.approx(float(theirs), rel=1e-9)


def test_large_sets_are_compared_in_blocks_and_by_small_subsets() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2600, 3)), rng.normal(0.1, 1, (2100, 3))
    found = kernel_distance(x, y)
    products = ((x @ y.T / 3 + 1) ** 3).mean()
    own = [((a @ a.T / 3 + 1) ** 3).sum() - ((a * a).sum(1) / 3 + 1).__pow__(3).sum() for a in (x, y)]
    expected = own[0] / (2600 * 2599) + own[1] / (2100 * 2099) - 2 * products
    assert found.value == pytest.approx(expected, rel=1e-9) and found.low < found.value < found.high


def test_diversity_of_the_pictures_of_a_prompt() -> None:
    east, north, west = [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]
    found = diversity([east, east, north, west, north], ["a", "a", "b", "b", "alone"])
    assert found == pytest.approx([0.0, 1.0])
    assert diversity([east, west, north], ["c"] * 3) == pytest.approx([(2 + 1 + 1) / 3])
