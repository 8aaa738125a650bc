"""What pictures are near to: each function against a plain loop or scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from components.evaluation.neighbours import density_coverage, memorised, nearest, precision_recall

RNG = np.random.default_rng(3)
REAL, DRAWN = RNG.normal(size=(60, 6)), RNG.normal(0.4, 1.2, size=(50, 6))


def test_precision_and_recall_against_a_plain_loop() -> None:
    draws = np.random.default_rng(5)
    real, drawn, k = draws.normal(size=(60, 4)), draws.normal(1.2, 0.8, size=(50, 4)), 3

    def on_manifold(points: np.ndarray, members: np.ndarray) -> list[bool]:
        found = []
        for point in points:
            hit = False
            for member in members:
                radius = sorted(float(np.linalg.norm(member - other)) for other in members)[k]
                hit = hit or float(np.linalg.norm(point - member)) <= radius
            found.append(hit)
        return found

    precision, recall = precision_recall(real, drawn, k)
    assert precision.tolist() == on_manifold(drawn, real) and recall.tolist() == on_manifold(real, drawn)
    assert 0 < precision.mean() < 1 and 0 < recall.mean() < precision.mean(), "moved draws cover little"
    same = precision_recall(real, real)
    assert same[0].all() and same[1].all()
    far = precision_recall(real, real + 100)
    assert not far[0].any() and not far[1].any()
    with pytest.raises(ValueError, match="more than 3 features"):
        precision_recall(real[:3], drawn)


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


def test_a_copy_far_from_the_origin_has_no_distance() -> None:
    trained = np.random.default_rng(1).normal(1e4, 1, (40, 3))
    at, away = nearest(trained, trained)
    assert at.tolist() == list(range(40)) and (away == 0).all()
