"""Histograms with their threshold, and the samples that lie next to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.records import DropReason
from components.data.thresholds import Measure, histogram

NUMBERS = st.lists(st.one_of(st.floats(-1e4, 1e4, width=32), st.integers(-50, 50).map(float)), max_size=80)


def measure(values: list[float], limit: float | None, keep: str) -> Measure:
    return Measure("a", "min_a", keep, DropReason.BLURRED, np.array(values, np.float32), limit)


@settings(max_examples=200, deadline=None)
@given(
    NUMBERS, st.none() | st.integers(-60, 60).map(float) | st.floats(-100, 100, width=32), st.sampled_from([">=", "<="])
)
def test_bars_count_every_value_on_its_side_of_the_limit(values: list[float], limit: float | None, keep: str) -> None:
    chart = histogram(np.array([*values, np.nan], np.float32), limit, keep)
    beyond = int(measure(values, limit, keep).beyond.sum())
    assert sum(count for _, count, _, _ in chart.bars) == len(values)
    assert sum(count for _, count, _, gone in chart.bars if gone) == beyond
    assert len(chart.bars) <= 36
    if values:
        assert max(share for _, _, share, _ in chart.bars) == 100
        assert (chart.line is None) == (limit is None)
        if chart.line is not None:  # the line stands between what is taken and what is kept
            sides = [gone for *_, gone in chart.bars]
            taken = sum(sides) / len(sides) * 100
            assert chart.line == pytest.approx(taken if keep == ">=" else 100 - taken)
            assert sides == sorted(sides, reverse=keep == ">=")


def test_whole_numbers_have_bars_of_whole_numbers() -> None:
    values = np.array([3, 4, 4, 5, 9], np.float32)
    assert [bar[:2] for bar in histogram(values, 5, "<=").bars] == [
        ("3", 1), ("4", 2), ("5", 1), ("6", 0), ("7", 0), ("8", 0), ("9", 1)
    ]  # fmt: skip
    assert "–" in histogram(np.arange(1000, dtype=np.float32)).bars[1][0]
    assert histogram(np.array([np.nan], np.float32)).bars == []


def test_the_nearest_on_either_side_come_first_and_without_a_limit_the_worst() -> None:
    values = [5.0, 1.0, float("nan"), 3.0, 4.0, 2.0]
    for keep, limit, gone, kept in ((">=", 3.0, [5, 1], [3, 4, 0]), ("<=", 3.0, [4, 0], [3, 5, 1])):
        beyond, stays = measure(values, limit, keep).nearest(5)
        assert (beyond.tolist(), stays.tolist()) == (gone, kept)
    beyond, worst = measure(values, None, ">=").nearest(2)
    assert (beyond.tolist(), worst.tolist()) == ([], [1, 5])
