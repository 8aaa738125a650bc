"""What is expected of a collection's ledger and of a dataset's rows, as data; :mod:`components.data.validation` asks.

Every suite is a table and what must hold of it. Tables hold numbers and short words only (a caption is its length),
so that a million rows are about 100 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.recipe import Prepare
from components.contracts.records import LEDGER_SCHEMA, CollectReason

if TYPE_CHECKING:
    from components.data.scores import Scores

Ints = Any


@dataclass(frozen=True)
class Expectation:
    """One thing that must hold of a column, in the words of Great Expectations.

    Args:
        type: e.g. ``"column_values_to_be_between"``. column: its name, or two of them for a pair.
        limits: keyword arguments, e.g. ``min_value``.
    """

    type: str
    column: str | tuple[str, str]
    limits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A table with what is expected of it; rows that fail may be set aside where ``quarantine`` is on."""

    name: str
    table: pd.DataFrame
    expectations: Sequence[Expectation]
    quarantine: bool = False


def between(column: str, low: float | None = None, high: float | None = None, mostly: float = 1.0) -> Expectation:
    """Values of the column, where it has one, are in ``low..high``; ``mostly`` of them."""
    limits = {"min_value": low, "max_value": high} | ({"mostly": mostly} if mostly < 1 else {})
    return Expectation("column_values_to_be_between", column, {k: v for k, v in limits.items() if v is not None})


def present(column: str, mostly: float = 1.0) -> Expectation:
    """At least the share ``mostly`` of the column's values is not missing."""
    return Expectation("column_values_to_not_be_null", column, {"mostly": mostly} if mostly < 1 else {})


def unique(column: str) -> Expectation:
    """No value occurs twice."""
    return Expectation("column_values_to_be_unique", column)


def among(column: str, values: Sequence[str]) -> Expectation:
    """Values are of this vocabulary."""
    return Expectation("column_values_to_be_in_set", column, {"value_set": list(values)})


def schema_suite(name: str, found: pa.Schema, expected: pa.Schema) -> Suite:
    """Every column that is expected is there, with its type, and no other."""
    names = [*expected.names, *(n for n in found.names if n not in expected.names)]
    rows = [(n, *(str(s.field(n).type) if n in s.names else "none" for s in (found, expected))) for n in names]
    table = pd.DataFrame(rows, columns=["column", "type", "expected"])
    return Suite(f"{name} schema", table, [Expectation("column_pair_values_to_be_equal", ("type", "expected"))])


def ledger_suites(
    name: str, ledger: pa.Table, config: Mapping[str, Any], min_collected: float, quarantine: bool
) -> tuple[list[Suite], Ints]:
    """What a collection promises of its ledger.

    Args:
        name: of the collection, for people.
        ledger: of ``LEDGER_SCHEMA``.
        config: the collection's own, whose limits its rows were collected under.
        min_collected: share of the rows that must have become samples.

    Returns:
        The suites, and the ledger rows behind the table of the last but one, ``"... collected"``.
    """
    suites = [schema_suite(name, ledger.schema, LEDGER_SCHEMA)]
    if ledger.schema.names != LEDGER_SCHEMA.names:
        return suites, np.empty(0, np.int64)
    count = ledger.num_rows
    every = ledger.select(["row", "status", "reason", "attempts"]).to_pandas()
    suites.append(
        Suite(
            f"{name} ledger",
            every,
            [present("row"), unique("row"), between("row", 0, max(count - 1, 0)), present("status"),
             among("status", ["success", "failed"]), among("reason", [str(r) for r in CollectReason]),
             present("attempts"), between("attempts", 0)],
        )
    )  # fmt: skip
    failed = ledger.filter(pc.equal(ledger["status"], "failed"))
    if failed.num_rows:
        what = failed.select(["reason", "detail"]).to_pandas()
        suites.append(Suite(f"{name} failed", what, [present("reason"), present("detail")]))
    good = ledger.filter(pc.equal(ledger["status"], "success"))
    table = good.select(["bytes", "width", "height", "quality", "shard"]).to_pandas()
    for text in ("url", "sha256"):
        table[f"{text}_characters"] = pc.utf8_length(good[text]).to_pandas()
    table["key"] = pc.cast(good["key"].dictionary_encode().combine_chunks().indices, pa.float64()).to_pandas()
    sides = [expected for side in ("width", "height") for expected in (present(side), between(side, 1))]
    suites.append(
        Suite(
            f"{name} collected",
            table,
            [present("url_characters"), between("url_characters", 1), present("sha256_characters"),
             between("sha256_characters", 64, 64), present("bytes"), between("bytes", 1, config.get("max_bytes")),
             *sides, between("quality", 1, 100), present("shard"), present("key"), unique("key")],
            quarantine,
        )
    )  # fmt: skip
    share = good.num_rows / count if count else 0.0
    summary = pd.DataFrame([{"rows": count, "collected_share": round(share, 6)}])
    suites.append(Suite(f"{name} summary", summary, [between("rows", 1), between("collected_share", min_collected)]))
    return suites, good["row"].to_numpy()


# columns of the scores that are held against their range, and whose distribution is compared between versions
RANGES: dict[str, tuple[float | None, float | None]] = {
    "width": (1, None), "height": (1, None), "grey_std": (0, 127.5), "sharpness": (0, None), "entropy": (0, 8),
    "words": (0, None), "characters": (0, None), "repetition": (0, 1), "clip_similarity": (-1.001, 1.001),
    "aesthetic": (None, None),
}  # fmt: skip


def measured(rules: Prepare) -> list[str]:
    """The columns of ``RANGES`` that the recipe has measured."""
    optional = {"clip_similarity": rules.clip, "aesthetic": rules.aesthetic}
    return [name for name in RANGES if optional.get(name, "always")]


def score_table(scores: Scores, at: Ints, rules: Prepare) -> pd.DataFrame:
    """The measured columns of the samples at these positions."""
    return pd.DataFrame({name: scores.numbers(name)[at] for name in measured(rules)})


def row_suites(rows: pd.DataFrame, scores: pd.DataFrame, rules: Prepare, sizes: Sequence[str]) -> list[Suite]:
    """What must hold of every row of the dataset.

    Args:
        rows: id, caption_characters, sha256_characters, tokens (their number), bucket, split, cluster_splits
            (number of splits that the row's cluster is in).
        scores: see :func:`score_table`, the same rows.
        sizes: of the recipe's buckets, ``"{width}x{height}"``.
    """
    mostly = 1 - rules.max_null_share
    return [
        Suite(
            "rows",
            rows,
            [present("id"), unique("id"), present("caption_characters"),
             between("caption_characters", 1, rules.max_caption_chars), between("sha256_characters", 64, 64),
             between("tokens", 2, rules.max_tokens), among("bucket", sizes), among("split", ["train", "holdout"]),
             between("cluster_splits", 1, 1)],
            rules.quarantine,
        ),
        Suite(
            "scores",
            scores,
            [e for name in scores.columns for e in (present(name, mostly), _in_range(name)) if e],
            rules.quarantine,
        ),
    ]  # fmt: skip


def _in_range(name: str) -> Expectation | None:
    low, high = RANGES[name]
    return None if low is None and high is None else between(name, low, high)


def summary_suites(summary: Mapping[str, float], rules: Prepare, drift: Mapping[str, float] | None) -> list[Suite]:
    """What must hold of the dataset as a whole.

    Args:
        summary: rows, train, holdout, dropped_share.
        drift: of every score, the population stability index against the dataset before; None where not asked.
    """
    expected = [between("train", rules.min_rows)]
    expected += [between("holdout", 1)] if rules.holdout > 0 else []
    suites = [Suite("summary", pd.DataFrame([summary]), [*expected, between("dropped_share", None, rules.max_dropped)])]
    if drift:
        table = pd.DataFrame([drift])
        suites.append(Suite("drift", table, [between(name, None, rules.max_score_drift) for name in drift]))
    return suites
