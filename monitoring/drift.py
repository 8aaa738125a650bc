"""Evidently: how far prompts have moved from the training captions. The only module that imports evidently.

Every column is compared by Jensen-Shannon distance, Evidently's own choice at these sizes for categories.
A fixed limit fails on small windows: with 100 prompts and a dozen bins, chance alone exceeds Evidently's
default of 0.1. So each column's limit is the larger of a distance that matters and of what chance gives at
these sizes: for samples of n and m rows over k filled bins, 8 JSD / (1/n + 1/m) is about chi-squared with
k-1 degrees of freedom (second-order expansion of JSD; Lin 1991, Österreicher and Vajda 2003).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from components.runtime.cluster import apply_quiet_environment
from components.runtime.storage import write_bytes
from monitoring.features import DESCRIBED, PICTURES, SCORED, CaptionIndex, picture_columns

if TYPE_CHECKING:
    import pandas as pd

Stats = npt.NDArray[np.float32]

METHOD = "jensenshannon"
MATTERS = 0.2  # too small to act on below, however sure; one prompt in ten with a new word makes about this
CHANCE = 1e-3  # probability, a column, that chance alone passes the limit
LARGEST = math.sqrt(math.log(2))  # Jensen-Shannon distance of two distributions that share nothing


@dataclass(frozen=True)
class ColumnDrift:
    """One column: its distance (0..0.83), its limit, and whether it counts for the score."""

    distance: float
    limit: float
    drifted: bool
    scored: bool


@dataclass(frozen=True)
class DriftResult:
    """What Evidently found.

    Attributes:
        score: mean distance of the scored columns as a share of the largest possible, 0..1.
        share_drifted: share of the scored columns beyond their limits, 0..1.
        unknown_word_share: share of the prompts with a word that no training caption has, 0..1.
        usual_unknown_word_share: the same of training captions judged by the other captions, 0..1.
        unknown_words: the most frequent of those words, with the number of prompts that hold them.
        columns: every column compared.
        prompts: number of prompts compared.
        captions: number of captions they were compared with.
    """

    score: float
    share_drifted: float
    unknown_word_share: float
    usual_unknown_word_share: float
    unknown_words: dict[str, int]
    columns: dict[str, ColumnDrift]
    prompts: int
    captions: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def measure_drift(
    index: CaptionIndex,
    captions: Sequence[str],
    prompts: Sequence[str],
    pictures: tuple[Stats, Stats] | None = None,
    report: Path | None = None,
    threshold: float = 0.3,
) -> DriftResult:
    """Compare prompts (current) with captions (reference).

    Args:
        index: built from all training captions.
        captions: the training captions to compare with, all of them or a sample.
        prompts: what was asked for; at least one.
        pictures: two float arrays of six columns (mean and standard deviation of R, G, B, 0..1): of training
            pictures, and of pictures made. Their rows need not match the texts; fewer than two are left out.
        report: where to save Evidently's HTML, if anywhere.
        threshold: share of drifted columns at which the report's headline speaks of drift, 0..1.
    """
    import pandas as pd

    described, asked = index.describe(captions, own=True), index.describe(prompts)
    kinds = SCORED | {name: kind for name, kind in DESCRIBED.items() if name not in PICTURES}
    reference, current = pd.DataFrame(described), pd.DataFrame(asked)
    if pictures is not None and min(map(len, pictures)) > 1:
        kinds = SCORED | DESCRIBED
        for frame, stats in ((reference, pictures[0]), (current, pictures[1])):
            for name, values in picture_columns(stats[: len(frame)]).items():
                frame[name] = pd.Series(values)  # rows beyond them become NaN, which Evidently leaves out
    columns = _compare(reference[list(kinds)], current[list(kinds)], kinds, report, threshold)
    scored = [column for column in columns.values() if column.scored]
    unknown = Counter(word for prompt in prompts for word in index.unknown(prompt))
    return DriftResult(
        score=round(sum(c.distance for c in scored) / len(scored) / LARGEST, 6),
        share_drifted=round(sum(c.drifted for c in scored) / len(scored), 6),
        unknown_word_share=_share_with_unseen(asked),
        usual_unknown_word_share=_share_with_unseen(described),
        unknown_words=dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:20]),
        columns=columns,
        prompts=len(prompts),
        captions=len(captions),
    )


def _share_with_unseen(columns: dict[str, list[Any]]) -> float:
    column = columns["unseen_words"]
    return round(sum(1 for value in column if value != "none") / len(column), 6)


def _compare(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    kinds: dict[str, str],
    report: Path | None,
    threshold: float,
) -> dict[str, ColumnDrift]:
    apply_quiet_environment()  # Evidently reads DO_NOT_TRACK when it is imported
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    limits = {name: _limit(reference[name], current[name], kind) for name, kind in kinds.items()}
    definition = DataDefinition(
        numerical_columns=[name for name, kind in kinds.items() if kind == "numerical"],
        categorical_columns=[name for name, kind in kinds.items() if kind == "categorical"],
    )
    judged = DataDriftPreset(
        columns=list(SCORED),
        method=METHOD,
        drift_share=threshold,
        per_column_threshold={name: limits[name] for name in SCORED},
        include_tests=False,
    )
    others = [name for name in kinds if name not in SCORED]
    shown = [ValueDrift(column=name, method=METHOD, threshold=limits[name]) for name in others]
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # it also correlates the columns, and one that is constant (no unseen word at all) has no correlation
        warnings.filterwarnings("ignore", message="invalid value encountered")
        snapshot = Report([judged, *shown]).run(
            Dataset.from_pandas(current, data_definition=definition),
            Dataset.from_pandas(reference, data_definition=definition),
        )
        if report is not None:
            write_bytes(str(report), snapshot.get_html_str(as_iframe=False).encode())
        metrics = snapshot.dict()["metrics"]
    found = {m["config"]["column"]: float(m["value"]) for m in metrics if "column" in m["config"]}
    return {
        name: ColumnDrift(round(found[name], 6), round(limit, 6), found[name] >= limit, name in SCORED)
        for name, limit in limits.items()
    }


def _limit(reference: pd.Series, current: pd.Series, kind: str) -> float:
    """The larger of :data:`MATTERS` and what chance gives, over the bins that Evidently itself makes."""
    from evidently.legacy.calculations.stattests.utils import get_binned_data
    from evidently.legacy.core import ColumnType
    from scipy.stats import chi2

    column_type = ColumnType.Numerical if kind == "numerical" else ColumnType.Categorical
    reference, current = reference.dropna(), current.dropna()
    before, now = get_binned_data(reference, current, column_type, 30, False)
    freedom = max(int(np.count_nonzero(before + now)) - 1, 1)
    chance = float(chi2.ppf(1 - CHANCE, freedom)) * (1 / len(current) + 1 / len(reference)) / 8
    return float(max(MATTERS, math.sqrt(chance)))
