"""The numbers that samples are filtered by: how they are distributed, and which samples lie at the threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from components.contracts.recipe import Prepare
from components.contracts.records import DropReason

if TYPE_CHECKING:
    from components.data.scores import Scores

Floats = npt.NDArray[np.float32]
_BARS = 30
_TAIL = 0.005  # share of the values at either end that has no bars of its own


@dataclass(frozen=True)
class Measure:
    """A number of every sample, and the recipe's limit on it.

    Args:
        title: for people. keep: which side of the limit stays, ``">="`` or ``"<="``.
        values: of every sample, NaN where there is none. limit: None where the recipe sets none. key: of the recipe.
        reason: of the samples beyond the limit.
    """

    title: str
    key: str
    keep: str
    reason: DropReason
    values: Floats
    limit: float | None

    @property
    def beyond(self) -> npt.NDArray[np.bool_]:
        """Samples on the wrong side of the limit."""
        if self.limit is None:
            return np.zeros(len(self.values), np.bool_)
        edge = np.float32(self.limit)
        return self.values < edge if self.keep == ">=" else self.values > edge

    def nearest(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Samples beyond the limit and those that it keeps, the nearest to it first; without a limit, the worst."""
        sign = 1 if self.keep == ">=" else -1
        order = np.argsort(sign * self.values, kind="stable")  # the worst first, NaN last
        order = order[: len(order) - int(np.isnan(self.values).sum())]
        gone = int(self.beyond.sum())
        return order[:gone][::-1][:number], order[gone : gone + number]


@dataclass(frozen=True)
class Bars:
    """A histogram: (label, count, share of the highest bar in percent, whether the limit takes it) a bar, and where
    the limit stands, in percent of the width."""

    bars: list[tuple[str, int, float, bool]]
    line: float | None


def measures_of(scores: Scores, rules: Prepare) -> list[Measure]:
    """The measured numbers that the recipe can filter by, in the order of the filters."""
    widths, heights = scores.kept_widths.astype(np.float32), scores.kept_heights.astype(np.float32)
    short, long = np.minimum(widths, heights), np.maximum(widths, heights)
    short[~scores.decoded] = np.nan
    rows: list[tuple[str, str, str, DropReason, Callable[[], Floats], float | None]] = [
        ("Shorter side as collected, pixels", "min_side", ">=", DropReason.TOO_SMALL, lambda: short, rules.min_side),
        ("Longer side / shorter side", "max_aspect", "<=", DropReason.ASPECT_RATIO,
         lambda: np.divide(long, short, dtype=np.float32), rules.max_aspect),
        ("Standard deviation of grey values", "blank_std", ">=", DropReason.BLANK,
         lambda: scores.numbers("grey_std"), rules.blank_std),
        ("Sharpness, variance of the Laplacian", "min_sharpness", ">=", DropReason.BLURRED,
         lambda: scores.numbers("sharpness"), rules.min_sharpness or None),
        ("Entropy of grey values, bits", "min_entropy", ">=", DropReason.LOW_ENTROPY,
         lambda: scores.numbers("entropy"), rules.min_entropy or None),
        ("Characters of the caption", "max_caption_chars", "<=", DropReason.CAPTION_TOO_LONG,
         lambda: scores.numbers("characters"), rules.max_caption_chars),
        ("Words of the caption", "min_caption_words", ">=", DropReason.CAPTION_TOO_SHORT,
         lambda: scores.numbers("words"), rules.min_caption_words or None),
        ("Share of repeated words", "max_repetition", "<=", DropReason.CAPTION_REPETITIVE,
         lambda: scores.numbers("repetition"), rules.max_repetition if rules.max_repetition < 1 else None),
        ("Similarity of picture and caption", "min_clip_similarity", ">=", DropReason.CLIP_SIMILARITY,
         lambda: scores.numbers("clip_similarity"),
         rules.min_clip_similarity if rules.min_clip_similarity > -1 else None),
        ("Aesthetic value", "min_aesthetic", ">=", DropReason.AESTHETIC, lambda: scores.numbers("aesthetic"),
         rules.min_aesthetic),
    ]  # fmt: skip
    found = []
    for title, key, keep, reason, read, limit in rows:
        values = read()
        if not np.isnan(values).all():
            found.append(Measure(title, key, keep, reason, values, limit))
    return found


def histogram(values: Floats, limit: float | None = None, keep: str = ">=") -> Bars:
    """About ``_BARS`` bars; the first and the last hold what lies beyond the bulk, and a limit is always an edge.

    Whole numbers have bars of whole numbers.
    """
    found = values[~np.isnan(values)].astype(np.float64)
    if not len(found):
        return Bars([], None)
    whole = bool((found == np.round(found)).all()) and (limit is None or limit == round(limit))
    anchor = None
    if limit is not None:  # the first value above the edge: one that equals the limit stays
        above = limit + 1 if whole else float(np.nextafter(np.float32(limit), np.float32(np.inf)))
        anchor = limit if keep == ">=" else above
    edges = _edges(found, anchor, whole)
    counts = np.bincount(np.searchsorted(edges, found, "right"), minlength=len(edges) + 1)
    lows, highs = np.concatenate([[-np.inf], edges]), np.concatenate([edges, [np.inf]])
    shown = slice(int(counts[0] == 0), len(counts) - int(counts[-1] == 0))
    bars = []
    for low, high, count in zip(lows[shown], highs[shown], counts[shown], strict=True):
        gone = anchor is not None and bool(high <= anchor if keep == ">=" else low >= anchor)
        bars.append((_label(low, high, whole), int(count), 100 * float(count / counts.max()), gone))
    if anchor is None:
        return Bars(bars, None)
    left = int(np.searchsorted(edges, anchor)) + 1 - shown.start  # bars on the left of the limit
    return Bars(bars, 100 * min(max(left, 0), len(bars)) / len(bars))


def _edges(values: npt.NDArray[np.float64], anchor: float | None, whole: bool) -> npt.NDArray[np.float64]:
    low = float(np.quantile(values, _TAIL, method="lower"))
    high = float(np.quantile(values, 1 - _TAIL, method="higher"))
    step = (high - low) / _BARS or 1.0
    step = float(np.ceil(step)) if whole else step
    origin = anchor if anchor is not None and low <= anchor <= high else low
    steps = np.arange(-np.floor((origin - low) / step), np.floor((high - origin) / step) + 2)
    edges = origin + step * steps  # with the anchor itself at no step
    return np.asarray(edges if anchor is None else np.unique(np.append(edges, anchor)), np.float64)


def _label(low: float, high: float, whole: bool) -> str:
    if np.isinf(low):
        return f"below {_short(high)}"
    if np.isinf(high):
        return f"{_short(low)} and more"
    if whole:
        return f"{low:.0f}" if high - low <= 1 else f"{low:.0f}–{high - 1:.0f}"
    return f"{_short(low)} – {_short(high)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
