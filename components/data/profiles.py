"""How scores are distributed, kept with a dataset so that the next version can be held against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

_BINS = 10
_FLOOR = 1e-4  # of a bin's share: an empty one would make the index infinite


def profile(scores: pd.DataFrame) -> dict[str, Any]:
    """For every column its deciles (fewer where they coincide) and the share of the values between them.

    Missing values count in none of the bins.
    """
    found = {}
    for name in scores.columns:
        values = _values(scores[name])
        if len(values):
            edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]).astype(np.float64))
            shares = [round(float(share), 6) for share in _shares(values, edges)]
            found[str(name)] = {"edges": [float(edge) for edge in edges], "shares": shares, "rows": len(values)}
    return found


def drift(before: Mapping[str, Any], scores: pd.DataFrame) -> dict[str, float]:
    """Population stability index of every column that both have, against a profile.

    The sum over bins of ``(b - a) ln(b / a)``, shares ``a`` before and ``b`` now; 0 is no change, below 0.1 is
    little and above 0.25 is much by the usual reading (Siddiqi 2006, "Credit risk scorecards").
    """
    found = {}
    for name in scores.columns:
        values = _values(scores[name])
        if str(name) in before and len(values):
            old = np.maximum(np.array(before[str(name)]["shares"]), _FLOOR)
            new = np.maximum(_shares(values, np.array(before[str(name)]["edges"])), _FLOOR)
            found[str(name)] = round(float(((new - old) * np.log(new / old)).sum()), 6)
    return found


def _values(column: Any) -> npt.NDArray[np.float64]:
    values = np.asarray(column, dtype=np.float64)
    return values[~np.isnan(values)]


def _shares(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    counts = np.bincount(np.searchsorted(edges, values, "left"), minlength=len(edges) + 1)
    return np.asarray(counts / len(values), dtype=np.float64)
