"""Equal keys against a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Run
from components.data import exact
from components.data.exact import equal_pairs, equal_pairs_on_ray


def naive(keys: list[str | None]) -> set[tuple[int, int]]:
    first: dict[str, int] = {}
    return {(first[key], i) for i, key in enumerate(keys) if key is not None and first.setdefault(key, i) != i}


def as_set(pairs: np.ndarray) -> set[tuple[int, int]]:
    assert len({(a, b) for a, b in pairs.tolist()}) == len(pairs)
    return {(a, b) for a, b in pairs.tolist()}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "ab", "", "é"])), max_size=40))
def test_equal_keys_are_tied_to_the_first(keys: list[str | None]) -> None:
    assert as_set(equal_pairs(pa.array(keys, pa.large_string()))) == naive(keys)


@pytest.mark.integration
def test_on_ray_the_same(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_BUCKET", 500)
    rng = np.random.default_rng(1)
    keys = [f"{k * k * 7919:08x}" for k in rng.integers(0, 3000, 4000).tolist()]
    keys[::5] = ["f" * 64] * len(keys[::5])  # a frequent one
    keys[::333] = [None] * len(keys[::333])
    table = pa.array(keys, pa.large_string())
    assert as_set(equal_pairs_on_ray(table, Run(object_store_mb=200))) == naive(keys)
    assert len(equal_pairs_on_ray(pa.array([], pa.large_string()), Run(object_store_mb=200))) == 0
