"""The gate: what Great Expectations is asked, what is said when it is not met, and which rows are set aside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from components.contracts.errors import DataError
from components.contracts.recipe import Prepare
from components.contracts.records import LEDGER_SCHEMA
from components.data.expectations import (
    RANGES,
    Suite,
    between,
    ledger_suites,
    measured,
    present,
    row_suites,
    summary_suites,
    unique,
)
from components.data.validation import Gate

RULES = Prepare(image_size=32, min_rows=5, max_dropped=0.5, max_tokens=16, max_caption_chars=30)
SUMMARY = {"rows": 10.0, "train": 9.0, "holdout": 1.0, "dropped_share": 0.2}
SIZES = ["32x32", "40x24"]


def rows(**changes: tuple[int, Any]) -> list[Suite]:
    """The suites of ten good rows, with single values changed: ``column=(row, value)``."""
    columns: dict[str, list[Any]] = {
        "id": list(range(10)), "caption_characters": [10.0] * 10, "sha256_characters": [64.0] * 10, "tokens": [6] * 10,
        "bucket": ["32x32"] * 9 + ["40x24"], "split": ["train"] * 9 + ["holdout"], "cluster_splits": [1] * 10,
    }  # fmt: skip
    scores = {name: [1.0] * 10 for name in measured(RULES)}
    for column, (row, value) in changes.items():
        (columns if column in columns else scores)[column][row] = value
    rules = RULES.model_copy(update={"quarantine": False})
    return row_suites(pd.DataFrame(columns), pd.DataFrame(scores), rules, SIZES)


def held(suites: list[Suite], folder: Path) -> Gate:
    gate = Gate(folder / "docs")
    for suite in suites:
        assert not suite.quarantine and not gate.hold(suite)
    return gate


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """One gate for many questions: opening one takes a second."""
    return Gate(tmp_path_factory.mktemp("docs"))


def asked(gate: Gate, suites: list[Suite]) -> tuple[list[int], list[str]]:
    """The rows that these suites set aside, and the sentences about what failed."""
    before, number = len(gate.failed), len(gate.results)
    aside = [row for s in suites for row in gate.hold(replace(s, name=f"{number} {s.name}"))]
    return aside, gate.failed[before:]


def test_good_rows_pass_and_leave_their_pages(tmp_path: Path) -> None:
    suites = [*rows(), *summary_suites(SUMMARY, RULES, None)]
    first = held(suites, tmp_path)
    first.require()
    assert not first.failed and len(first.results) == sum(len(s.expectations) for s in suites) == 28
    assert first.docs.exists() and len(list((tmp_path / "docs").rglob("validations/**/*.html"))) == 3
    assert held(suites, tmp_path / "again").results == first.results  # no times, no run names


@pytest.mark.parametrize(
    ("changes", "summary", "said"),
    [
        ({"id": (1, 0)}, {}, "id values to be unique: 2 of 10 rows"),
        ({"caption_characters": (1, None)}, {}, "caption_characters values to not be null: 1 of 10"),
        ({"caption_characters": (1, 31)}, {}, "caption_characters values to be between (max_value 30"),
        ({"caption_characters": (1, 0)}, {}, "1 of 10 rows do not, e.g. 0"),
        ({"sha256_characters": (1, 40)}, {}, "sha256_characters values to be between"),
        ({"tokens": (1, 17)}, {}, "max_value 16"),
        ({"bucket": (1, "64x64")}, {}, "bucket values to be in set"),
        ({"split": (1, "test")}, {}, "split values to be in set"),
        ({"cluster_splits": (1, 2)}, {}, "cluster_splits"),
        ({"entropy": (1, 8.5)}, {}, "scores: entropy values to be between (max_value 8, min_value 0)"),
        ({"sharpness": (1, None)}, {}, "scores: sharpness values to not be null: 1 of 10"),
        ({}, {"train": 4.0}, "train values to be between (min_value 5): found 4"),
        ({}, {"holdout": 0.0}, "holdout"),
        ({}, {"dropped_share": 0.6}, "dropped_share values to be between (max_value 0.5): found 0.6"),
    ],
)
def test_every_fault_is_named(shared: Gate, changes: dict[str, Any], summary: dict[str, float], said: str) -> None:
    _, failed = asked(shared, [*rows(**changes), *summary_suites({**SUMMARY, **summary}, RULES, None)])
    assert len(failed) == 1 and said in failed[0]


def test_what_fails_is_told_with_the_page_to_read(tmp_path: Path) -> None:
    gate = held([*rows(tokens=(1, 17)), *summary_suites({**SUMMARY, "train": 4.0}, RULES, None)], tmp_path)
    with pytest.raises(DataError) as error:
        gate.require()
    assert "2 of 28 expectations" in str(error.value) and "\n" not in str(error.value)
    assert gate.docs.exists() and str(gate.docs) in str(error.value)
    assert "Failed" in next((tmp_path / "docs").rglob("validations/summary/**/*.html")).read_text()


def test_rows_that_fail_are_set_aside_where_the_suite_says_so(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.0, 5.0, None, 1.0], "b": [0, 1, 2, 1]}, index=[7, 8, 9, 10]).reset_index(drop=True)
    expected = [present("a"), between("a", 0, 4), unique("b")]
    gate = Gate(tmp_path)
    aside = gate.hold(Suite("kept apart", table, expected, quarantine=True))
    assert aside == {
        2: "a values to not be null",
        1: "a values to be between (max_value 4, min_value 0)",
        3: "b values to be unique",
    }
    gate.require()
    assert [r.get("set_aside") for r in gate.results] == [1, 1, 2] and not any(r["success"] for r in gate.results)
    assert not gate.hold(Suite("strict", table, expected))
    with pytest.raises(DataError, match="3 of 6 expectations"):
        gate.require()


def test_a_share_of_missing_values_can_be_allowed(shared: Gate) -> None:
    tables = [pd.DataFrame({"entropy": [None] * n + [4.0] * (10 - n)}) for n in (2, 3)]
    rules = RULES.model_copy(update={"max_null_share": 0.2})
    for table, failing in zip(tables, ([], [0, 1, 2]), strict=True):
        (_, suite) = row_suites(pd.DataFrame({"id": []}), table, rules, SIZES)
        assert asked(shared, [suite]) == (failing, [])


def test_drift_is_held_against_the_recipe(shared: Gate) -> None:
    rules = RULES.model_copy(update={"max_score_drift": 0.25})
    _, failed = asked(shared, summary_suites(SUMMARY, rules, {"entropy": 0.1, "words": 0.3}))
    assert len(failed) == 1 and failed[0].endswith("drift: words values to be between (max_value 0.25): found 0.3")


def ledger(**changes: tuple[int, Any]) -> pa.Table:
    """Four rows, the last one failed."""
    row = {
        "url": "http://a/", "caption": "a", "status": "success", "attempts": 1, "bytes": 100, "sha256": "0" * 64,
        "width": 8, "height": 8, "quality": 90, "shard": "00000",
    }  # fmt: skip
    table: list[dict[str, Any]] = [{**row, "row": i, "key": f"{i:09d}"} for i in range(3)]
    table.append({"row": 3, "url": "http://a/", "status": "failed", "reason": "http_404", "detail": "x", "attempts": 1})
    for column, (at, value) in changes.items():
        table[at][column] = value
    return pa.Table.from_pylist(table, schema=LEDGER_SCHEMA)


@pytest.mark.parametrize(
    ("changes", "said", "aside"),
    [
        ({}, None, None),
        ({"row": (1, 0)}, "row values to be unique", None),
        ({"row": (1, 4)}, "row values to be between (max_value 3", None),
        ({"status": (1, "perhaps")}, "status values to be in set", None),
        ({"reason": (3, "because")}, "reason values to be in set", None),
        ({"reason": (3, None)}, "reason values to not be null", None),
        ({"attempts": (0, None)}, "attempts values to not be null", None),
        ({"bytes": (1, 2000)}, "bytes values to be between (max_value 1000", 1),
        ({"sha256": (2, "abc")}, "sha256_characters values to be between", 2),
        ({"url": (2, None)}, "url_characters values to not be null", 2),
        ({"width": (0, 0)}, "width values to be between", 0),
        ({"quality": (0, 101)}, "quality values to be between", 0),
        ({"key": (0, None)}, "key values to not be null", 0),
    ],
)
def test_what_a_collection_promises(shared: Gate, changes: dict[str, Any], said: str | None, aside: int | None) -> None:
    for quarantine in (False, True):
        suites, places = ledger_suites("collection", ledger(**changes), {"max_bytes": 1000}, 0.75, quarantine)
        failing, failed = asked(shared, suites)
        assert [int(places[i]) for i in failing] == ([aside] if quarantine and aside is not None else [])
        stops = said is not None and not failing
        assert bool(failed) == stops and (not stops or any(str(said) in sentence for sentence in failed))


def test_a_collection_of_too_few_samples_or_of_other_columns_stops(shared: Gate) -> None:
    suites, _ = ledger_suites("collection", ledger(), {}, 0.8, False)
    (failed,) = asked(shared, suites)[1]
    assert failed.endswith("collection summary: collected_share values to be between (min_value 0.8): found 0.75")
    other = ledger().drop_columns(["quality"]).append_column("more", pa.array([1] * 4))
    suites, places = ledger_suites("collection", other, {}, 0.0, False)
    assert len(suites) == 1 and not len(places)
    (failed,) = asked(shared, suites)[1]
    assert failed.endswith("2 of 17 rows do not, e.g. ['none', 'int32'], ['int64', 'none']")


def test_every_measure_that_is_compared_is_a_score() -> None:
    from components.data.scores import SCORE_SCHEMA

    assert set(RANGES) <= set(SCORE_SCHEMA.names)
    assert "clip_similarity" not in measured(RULES)
    assert "clip_similarity" in measured(RULES.model_copy(update={"clip": "somewhere"}))
