from __future__ import annotations

import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.recipe import Watch
from components.contracts.records import LOGBOOK_SCHEMA
from monitoring.decide import ReleaseInfo, decide
from monitoring.live import LEAST, Live, answered, certain_drop, live, version_before
from monitoring.watch import window

START = datetime.datetime(2026, 5, 4, tzinfo=datetime.UTC)


def book(*parts: tuple[str, int, dict[str, object]]) -> pa.Table:
    """Rows of ``(version, number, other fields)`` one after the other; a callable field gets the row's number."""
    rows = []
    for version, number, fields in parts:
        for i in range(number):
            row = {key: value(i) if callable(value) else value for key, value in fields.items()}
            at = START + datetime.timedelta(seconds=len(rows))
            rows.append({
                "time": at, "request_id": f"r{len(rows)}", "model_version": version, "status": 200, "seconds": 0.1,
                "prompt": "a star", **row,
            })  # fmt: skip
    return pa.Table.from_pylist(rows, LOGBOOK_SCHEMA)


def scored(version: str, number: int, mean: float, judge: str = "j") -> tuple[str, int, dict[str, object]]:
    fields = {"role": "quality", "judge": judge, "quality": lambda i: mean + (0.02 if i % 2 else -0.02)}
    return version, number, fields


def test_what_was_drawn_besides_is_no_request() -> None:
    table = book(
        ("1", 3, {}), ("2", 2, {"role": "canary"}), ("2", 4, {"role": "shadow", "status": 500}), scored("1", 5, 0.3)
    )
    assert answered(table).num_rows == 5
    assert window(table, "1").num_rows == 3 and window(table, "2").num_rows == 2


def test_figures_of_a_version() -> None:
    table = book(
        ("1", 100, {"seconds": lambda i: i / 100}), ("1", 5, {"status": 500, "seconds": 99.0}),
        scored("1", 30, 0.3), scored("1", 10, 0.9, "another"), scored("2", 10, 0.1),
    )  # fmt: skip
    found = live(table, window(table, "1"), "1", "j")
    assert (found.served, found.scored, found.judge) == (100, 30, "j")
    assert found.p95 == pytest.approx(0.9405) and found.quality == pytest.approx(0.3)
    assert found.deviation == pytest.approx(0.02, rel=0.05)
    assert live(table, window(table, "1"), "1").judge == "another"  # that scored last
    nothing = live(table, window(table, "3"), "3")
    assert (nothing.served, nothing.p95, nothing.quality, nothing.scored) == (0, None, None, 0)


def test_the_version_before() -> None:
    table = book(("1", 2, {}), ("2", 2, {}), ("9", 2, {"role": "canary"}), ("8", 2, {"role": "shadow"}), ("3", 2, {}))
    assert version_before(table, "3") == "2" and version_before(table, "2") == "1"
    assert version_before(table, "1") is None and version_before(table, "7") is None


@given(st.floats(0, 1), st.floats(0, 1), st.integers(LEAST, 1000), st.floats(0.001, 0.3))
def test_a_drop_is_certain_only_beyond_chance(now: float, before: float, n: int, deviation: float) -> None:
    found = certain_drop(Live("2", 9, 1.0, "j", now, deviation, n), Live("1", 9, 1.0, "j", before, deviation, n))
    assert found is not None and found < before - now
    assert certain_drop(Live("2", 9, 1.0, "j", now, deviation, n), Live("1", 9, 1.0, "k", before, deviation, n)) is None
    few = Live("1", 9, 1.0, "j", before, deviation, LEAST - 1)
    assert certain_drop(Live("2", 9, 1.0, "j", now, deviation, n), few) is None


def info(
    now: Live | None = None, before: Live | None = None, back: bool = True, dropped: str | None = None
) -> ReleaseInfo:
    return ReleaseInfo("2", back, dropped, now, before)


@pytest.mark.parametrize(
    ("release", "limits", "action", "says"),
    [
        (info(Live("2", 60, 1.0), Live("1", 60, 0.4)), Watch(), "keep", "no prompt"),
        (info(Live("2", 60, 1.0), Live("1", 60, 0.4)), Watch(max_latency_ratio=2.0), "roll_back", "2.5 times the 0.40"),
        (info(Live("2", 60, 0.7), Live("1", 60, 0.4)), Watch(max_latency_ratio=2.0), "keep", "no prompt"),
        (info(Live("2", 60, 1.0), Live("1", 9, 0.4)), Watch(max_latency_ratio=2.0), "keep", "no prompt"),
        (info(Live("2", 60, 1.0), None), Watch(max_latency_ratio=2.0), "keep", "no prompt"),
        (
            info(Live("2", 60, 1.0, "j", 0.2, 0.05, 100), Live("1", 60, 1.0, "j", 0.3, 0.05, 100)),
            Watch(), "roll_back", "0.200 against 0.300, at least 0.086 less",
        ),
        (
            info(Live("2", 60, 1.0, "j", 0.2, 0.05, 100), Live("1", 60, 1.0, "j", 0.3, 0.05, 100), back=False),
            Watch(), "keep", "0.200 against 0.300",
        ),
        (
            info(Live("2", 60, 1.0, "j", 0.26, 0.05, 100), Live("1", 60, 1.0, "j", 0.3, 0.05, 100)),
            Watch(), "keep", "no prompt",
        ),
    ],
)  # fmt: skip
def test_a_champion_that_is_slower_or_worse_is_taken_back(
    release: ReleaseInfo, limits: Watch, action: str, says: str
) -> None:
    decision = decide(None, 100, 0.0, release, limits)
    assert decision.action == action and says in decision.reasons[0]
    assert decision.action != "keep" or release.can_roll_back or "no earlier version" in decision.reasons[-1]


def test_what_a_server_gave_up_is_taken_back_whatever_the_number_of_requests() -> None:
    decision = decide(None, 0, 0.0, info(dropped="3 of its first 4 requests failed"), Watch())
    assert decision.action == "roll_back" and "gave up version 2: 3 of its first 4" in decision.reasons[0]
    assert decide(None, 0, 0.0, info(dropped="x", back=False), Watch()).action == "keep"
