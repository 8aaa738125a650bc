"""Distributions of scores, and their drift."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.profiles import drift, profile

VALUES = st.lists(st.floats(-1e6, 1e6, width=32) | st.none(), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_a_profile_is_json_and_does_not_drift_from_itself(values: list[float | None]) -> None:
    table = pd.DataFrame({"a": pd.Series(values, dtype=float)})
    found = profile(table)
    json.dumps(found, allow_nan=False)
    if any(v is not None for v in values):
        assert sum(found["a"]["shares"]) == pytest.approx(1, abs=1e-5)
        assert len(found["a"]["edges"]) + 1 == len(found["a"]["shares"]) <= 10
        assert drift(found, table)["a"] == pytest.approx(0, abs=1e-4)
    else:
        assert found == {} and drift(found, table) == {}


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_drift_is_finite_and_never_negative(some: list[float | None], others: list[float | None]) -> None:
    before, after = (pd.DataFrame({"a": pd.Series(v, dtype=float)}) for v in (some, others))
    for value in drift(profile(before), after).values():
        assert np.isfinite(value) and value >= 0


def test_a_shift_of_one_deviation_is_much_and_another_draw_is_little() -> None:
    draws = np.random.default_rng(0)
    before = profile(pd.DataFrame({"a": draws.normal(size=20_000), "b": draws.integers(0, 3, 20_000)}))
    after = drift(
        before, pd.DataFrame({"a": draws.normal(1, 1, 20_000), "b": draws.integers(0, 3, 20_000), "new": 1.0})
    )
    assert after["a"] > 0.5 and after["b"] < 0.01 and set(after) == {"a", "b"}
    # by hand: shares 1/2, 1/2 against 3/4, 1/4
    half = {"a": {"edges": [0.5], "shares": [0.5, 0.5], "rows": 4}}
    expected = 0.25 * np.log(1.5) - 0.25 * np.log(0.5)
    assert drift(half, pd.DataFrame({"a": [0.0, 0.0, 0.0, 1.0]}))["a"] == pytest.approx(expected, abs=1e-6)
