"""The gate: what Great Expectations is asked, and what is said when it is not met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.contracts.errors import DataError
from components.contracts.recipe import Prepare
from components.data.validation import require, validate

RULES = Prepare(image_size=32, min_rows=5, max_dropped=0.5, max_tokens=16, max_caption_chars=30)
SUMMARY = {"rows": 10.0, "train": 9.0, "holdout": 1.0, "dropped_share": 0.2}


def rows(**changes: tuple[int, Any]) -> pd.DataFrame:
    """Ten good rows, with single values changed: ``column=(row, value)``."""
    columns: dict[str, list[Any]] = {
        "id": [f"{i:016x}" for i in range(10)], "caption": ["a red star"] * 10, "tokens": [6] * 10,
        "pixel_bytes": [3072] * 10, "split": ["train"] * 9 + ["holdout"], "cluster": [f"{i:016x}" for i in range(10)],
        "cluster_splits": [1] * 10,
    }  # fmt: skip
    for column, (row, value) in changes.items():
        columns[column][row] = value
    return pd.DataFrame(columns)


def test_good_rows_pass_and_leave_their_pages(tmp_path: Path) -> None:
    first = validate(rows(), SUMMARY, RULES, tmp_path / "docs")
    require(first)
    assert not first.failed and len(first.results) == 11
    assert first.docs.exists() and list((tmp_path / "docs").rglob("validations/**/*.html"))
    assert validate(rows(), SUMMARY, RULES, tmp_path / "again").results == first.results  # no times, no run names


@pytest.mark.parametrize(
    ("changes", "summary", "said"),
    [
        ({"id": (1, "0000000000000000")}, {}, "id values to be unique: 2 of 10 rows"),
        ({"caption": (1, None)}, {}, "caption values to not be null: 1 of 10"),
        ({"caption": (1, "")}, {}, "caption value lengths to be between"),
        ({"pixel_bytes": (1, 3071)}, {}, "pixel_bytes values to be between"),
        ({"tokens": (1, 17)}, {}, "max_value 16"),
        ({"split": (1, "test")}, {}, "split values to be in set"),
        ({"cluster_splits": (1, 2)}, {}, "cluster_splits"),
        ({}, {"train": 4.0}, "train values to be between (min_value 5.0): found 4"),
        ({}, {"holdout": 0.0}, "holdout"),
        ({}, {"dropped_share": 0.6}, "dropped_share values to be between (max_value 0.5): found 0.6"),
    ],
)
def test_every_fault_is_named(tmp_path: Path, changes: dict[str, Any], summary: dict[str, float], said: str) -> None:
    verdict = validate(rows(**changes), {**SUMMARY, **summary}, RULES, tmp_path / "docs")
    with pytest.raises(DataError) as error:
        require(verdict)
    assert said in str(error.value) and "1 of 11 expectations" in str(error.value)
    assert verdict.docs.exists() and str(verdict.docs) in str(error.value)
