"""Similar pairs: exact whatever the blocking, complete within a cell, bounded where everything is alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data import neighbours
from components.data.neighbours import LENGTH, cells, cells_of, fit, rounded, similar_pairs


def crowd(seed: int, n: int, d: int, centres: int, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(centres, d))[rng.integers(0, centres, n)]
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    return (points + spread * rng.normal(size=(n, d)) / np.sqrt(d)).astype(np.float16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 1500))
def test_products_of_rounded_vectors_are_exact(seed: int, n: int, d: int) -> None:
    vectors = rounded(crowd(seed, n, d, 3, 0.5))
    whole = vectors.astype(np.int64)
    assert np.array_equal(vectors @ vectors.T, (whole @ whole.T).astype(np.float32))
    assert np.array_equal(vectors, whole)
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) / LENGTH - 1).max() < 0.005


def test_vectors_that_are_no_directions_become_zero() -> None:
    odd = np.array([[0, 0], [np.nan, 1], [np.inf, 0], [3, 4]], dtype=np.float16)
    assert rounded(odd).tolist() == [[0, 0], [0, 0], [0, 0], [2400, 3200]]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 120), st.integers(1, 8), st.sampled_from([0.2, 0.6]),
    st.sampled_from([0.5, 0.8, 0.95]), st.integers(1, 200), st.integers(16, 4096),
)  # fmt: skip
def test_pairs_are_the_most_similar_of_each_item(
    seed: int, n: int, centres: int, spread: float, similarity: float, most: int, at_once: int
) -> None:
    vectors = rounded(crowd(seed, n, 16, centres, spread))
    labels = np.random.default_rng(seed).integers(0, n, n)
    items = np.arange(n) * 3 + 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_AT_ONCE", at_once)
        pairs, products = similar_pairs(vectors, items, labels, similarity, most)
    whole = vectors.astype(np.int64)
    dots = whole @ whole.T
    expected = set()
    for i in range(n):
        others = [j for j in range(n) if labels[i] != labels[j] and dots[i, j] >= similarity * LENGTH**2]
        others.sort(key=lambda j, i=i: (-dots[i, j], j))
        expected |= {(min(i, j), max(i, j)) for j in others[:most]}
    assert [tuple(p) for p in pairs.tolist()] == sorted((items[i], items[j]) for i, j in expected)
    assert products.tolist() == [dots[i, j] for i, j in sorted(expected)]


def test_k_means_finds_the_crowds_and_is_the_same_again() -> None:
    points = crowd(0, 3000, 32, 12, 0.15)
    sample = rounded(points)
    centroids = fit(sample, 40)
    assert np.array_equal(centroids, fit(sample, 40))
    nearest = cells_of(sample, centroids, 1)[:, 0]
    cosine = (sample * centroids[nearest]).sum(axis=1) / LENGTH**2
    assert np.median(cosine) > 0.95
    two = cells_of(sample, centroids, 2)
    assert np.array_equal(two[:, 0], nearest) and (two[:, 0] != two[:, 1]).all()
    # in another order of rows, each row is where it was
    order = np.random.default_rng(1).permutation(3000)
    assert np.array_equal(cells_of(sample[order], centroids, 2), two[order])


def test_pairs_across_cells_are_found_by_the_second_probe() -> None:
    points = crowd(3, 4000, 24, 400, 0.12)
    vectors, items = rounded(points), np.arange(4000)
    truth = {tuple(p) for p in similar_pairs(vectors, items, items, 0.97, 4000)[0].tolist()}
    recall = []
    for probes in (1, 2):
        found: set[tuple[int, int]] = set()
        for members in cells(items, vectors.__getitem__, fit(vectors, 63), probes):
            found |= {tuple(p) for p in similar_pairs(vectors[members], members, members, 0.97, 4000)[0].tolist()}
        assert found <= truth
        recall.append(len(found) / len(truth))
    assert recall[0] <= recall[1] and recall[1] > 0.99, recall


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_a_cell_that_is_too_large_is_divided(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CELL", 200)
    vectors, items = rounded(crowd(0, 3000, 16, 1 if spread == 0 else 30, spread)), np.arange(3000)
    found = list(cells(items, vectors.__getitem__, fit(vectors, 2), 2))
    assert max(len(members) for members in found) <= 200
    assert set(np.concatenate(found).tolist()) == set(range(3000))
    assert all((np.diff(members) > 0).all() for members in found)
    assert sum(len(members) for members in found) < 3000 * 2**4
