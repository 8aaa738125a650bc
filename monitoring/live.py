"""What the logbook tells of one served version: latency of its requests, quality of its pictures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LEAST = 20  # scored pictures of each version, below which their means are not compared
_Z = 1.96  # two-sided 95%, normal approximation


@dataclass(frozen=True)
class Live:
    """Figures of one version. ``p95`` is in seconds; qualities are cosines of prompt and picture, by one judge."""

    version: str
    served: int  # requests that were answered
    p95: float | None = None  # of their latency; None when there were none
    judge: str | None = None  # first digits of the digest of the judge that the qualities are by
    quality: float | None = None  # mean
    deviation: float = 0.0  # standard deviation of the single ones
    scored: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def answered(logbook: pa.Table) -> pa.Table:
    """The rows of what clients asked and were answered: not those of what was drawn or scored besides."""
    role = logbook["role"]
    return logbook.filter(pc.or_(pc.is_null(role), pc.equal(role, "canary").fill_null(False)))


def live(logbook: pa.Table, requests: pa.Table, version: str, judge: str | None = None) -> Live:
    """Figures of ``version``.

    Args:
        logbook: all rows. requests: one row a request that ``version`` answered or failed.
        judge: only its scores; None takes the judge that scored last.
    """
    seconds = requests.filter(pc.equal(requests["status"], 200))["seconds"].to_numpy()
    p95 = float(np.quantile(seconds, 0.95)) if len(seconds) else None
    ours = pc.and_(pc.equal(logbook["model_version"], version), pc.equal(logbook["role"], "quality"))
    scores = logbook.filter(ours.fill_null(False)).sort_by("time")
    if judge is None and scores.num_rows:
        judge = scores["judge"][-1].as_py()
    values = scores.filter(pc.equal(scores["judge"], judge).fill_null(False))["quality"].to_numpy()
    if not len(values):
        return Live(version, len(seconds), p95)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Live(version, len(seconds), p95, judge, float(values.mean()), deviation, len(values))


def version_before(logbook: pa.Table, version: str) -> str | None:
    """The version that answered last before ``version`` first did; None when there was none."""
    rows = answered(logbook)
    rows = rows.filter(pc.and_(pc.is_null(rows["role"]), pc.is_valid(rows["model_version"])))
    times = rows.filter(pc.equal(rows["model_version"], version))["time"]
    if not len(times):
        return None
    earlier = rows.filter(pc.less(rows["time"], pc.min(times))).sort_by("time")
    return str(earlier["model_version"][-1].as_py()) if earlier.num_rows else None


def certain_drop(now: Live, before: Live) -> float | None:
    """By how much the mean quality has fallen at the least, at 95% (Welch's interval); None where it cannot be told.

    Negative where it may as well have risen. Two versions that answered other prompts differ in this for that reason
    alone: see ``docs/operations.md``.
    """
    if now.quality is None or before.quality is None or now.judge != before.judge:
        return None
    if min(now.scored, before.scored) < LEAST:
        return None
    error = math.sqrt(now.deviation**2 / now.scored + before.deviation**2 / before.scored)
    return before.quality - now.quality - _Z * error
