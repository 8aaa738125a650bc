"""Banding against comparing all with all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data import close_hashes
from components.data.close_hashes import bands, close_pairs


def brute(hashes: np.ndarray, bits: int) -> set[tuple[int, int]]:
    i, j = np.triu_indices(len(hashes), 1)
    near = np.bitwise_count(hashes[i] ^ hashes[j]) <= bits
    return set(zip(i[near].tolist(), j[near].tolist(), strict=True))


def found(hashes: np.ndarray, bits: int) -> set[tuple[int, int]]:
    return {
        (min(a, b), max(a, b))
        for i, j in close_pairs(hashes, bits)
        for a, b in zip(i.tolist(), j.tolist(), strict=True)
    }


def around(rng: np.random.Generator, n: int, centres: int, flips: int) -> np.ndarray:
    hashes = rng.integers(0, 2**64, centres, dtype=np.uint64)[rng.integers(0, centres, n)]
    for _ in range(flips):
        hashes ^= np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64)
    return np.unique(hashes)


@pytest.mark.parametrize("bits", range(17))
def test_bands_part_the_64_bits(bits: int) -> None:
    masks = bands(bits)
    assert len(masks) == bits + 1 and all(masks)
    assert sum(masks) == 2**64 - 1 == np.bitwise_or.reduce(np.array(masks, dtype=np.uint64))


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 150), st.integers(1, 8), st.integers(0, 12), st.integers(0, 16))
def test_every_close_pair_is_found_and_no_other(seed: int, n: int, centres: int, flips: int, bits: int) -> None:
    hashes = around(np.random.default_rng(seed), n, centres, flips)
    assert found(hashes, bits) == brute(hashes, bits)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(0, 63), st.integers(1, 40))
def test_also_where_bands_say_little(seed: int, bits: int, fixed: int, crowd: int) -> None:
    """Crowds of equal bands are split further; here from a few hashes on, with most bits equal in all."""
    hashes = np.unique(around(np.random.default_rng(seed), 300, 3, 5) | np.uint64(2**64 - 2**fixed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(close_hashes, "_CROWD", crowd)
        patch.setattr(close_hashes, "_SORTING", 0)
        assert found(hashes, bits) == brute(hashes, bits)


def test_a_band_that_all_share_costs_no_quadratic_search() -> None:
    """40 000 hashes, half of whose bits are equal in all: all with all would be 800 million comparisons."""
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**64, 40_000, dtype=np.uint64) & np.uint64(0xFFFFFFFF00000000))
    compared = 0

    def counted(values: np.ndarray, rows: np.ndarray, ends: np.ndarray, bits: int):  # type: ignore[no-untyped-def]
        nonlocal compared
        compared += int(np.maximum(ends - np.arange(len(ends)) - 1, 0).sum())
        yield from real(values, rows, ends, bits)

    real = close_hashes._compared
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(close_hashes, "_compared", counted)
        pairs = found(hashes, 3)
    assert compared < 40_000_000
    sample = rng.choice(len(hashes), 400, replace=False)
    for k in sample.tolist():
        near = np.flatnonzero(np.bitwise_count(hashes ^ hashes[k]) <= 3)
        assert {(min(k, m), max(k, m)) for m in near.tolist() if m != k} == {p for p in pairs if k in p}
