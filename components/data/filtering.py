"""Which scored samples stay. Thresholds read scores alone: changing one opens no picture again.

Rules are tried in the order of :data:`RULES`; a sample goes by the first that it breaks. A limit itself stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.errors import RecipeError
from components.contracts.recipe import Prepare
from components.contracts.records import DropReason
from components.data.scores import Scores
from components.data.takedown import Blocklist
from components.data.wording import listed

Mask = npt.NDArray[np.bool_]
_CHUNK = 100_000  # captions that are Python texts at once


@dataclass(frozen=True)
class Rejections:
    """Why samples go. ``codes`` (int8, one a sample): 0 stays, else 1 + the position of the reason in ``RULES``."""

    codes: npt.NDArray[np.int8]
    _scores: Scores
    _rules: Prepare
    _blocklist: Blocklist

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Positions of the samples that stay, ascending."""
        return np.flatnonzero(self.codes == 0)

    def counts(self) -> dict[str, int]:
        """Number of samples that go, by reason; reasons that took none are left out."""
        found = np.bincount(self.codes, minlength=len(RULES) + 1)[1:]
        return {str(reason): int(n) for reason, n in zip(RULES, found, strict=True) if n}

    def reason(self, i: int) -> DropReason:
        """Why the sample at position ``i`` goes; only of samples that do."""
        code = int(self.codes[i])
        if not code:
            raise IndexError(f"sample {i} stays")
        return list(RULES)[code - 1]

    def detail(self, i: int) -> str:
        """One line for people on why the sample at position ``i`` goes."""
        return RULES[self.reason(i)].tell(self._scores, self._rules, self._blocklist, i)


def rejections(scores: Scores, rules: Prepare, blocklist: Blocklist | None = None) -> Rejections:
    """What the recipe's thresholds and the takedown list leave out.

    Raises:
        RecipeError: a threshold is set for something that the recipe does not measure.
    """
    require_measured(rules)
    blocklist = blocklist or Blocklist()
    codes = np.zeros(len(scores), dtype=np.int8)
    for number, rule in enumerate(RULES.values(), start=1):
        broken = rule.breaks(scores, rules, blocklist)
        if broken is not None:
            codes[(codes == 0) & broken] = number
    return Rejections(codes, scores, rules, blocklist)


def require_measured(rules: Prepare) -> None:
    """Refuse a threshold for which the recipe names no model.

    Raises:
        RecipeError: naming the threshold and the key that is missing.
    """
    for threshold, set_, model, name in (
        ("min_clip_similarity", rules.min_clip_similarity > -1, rules.clip, "clip"),
        ("min_aesthetic", rules.min_aesthetic is not None, rules.aesthetic, "aesthetic"),
    ):
        if set_ and model is None:
            raise RecipeError(
                f"prepare.{threshold} is set, but prepare.{name} is null: nothing was measured to compare it with",
                expected=f"the folder or hub id of a model in prepare.{name}",
                remedy=f"set prepare.{name}, or leave prepare.{threshold} out",
            )


@dataclass(frozen=True)
class _Rule:
    """``breaks`` gives the samples that break the rule, None where the recipe does not ask; ``tell`` says why."""

    breaks: Callable[[Scores, Prepare, Blocklist], Mask | None]
    tell: Callable[[Scores, Prepare, Blocklist, int], str]


def _below(column: str, threshold: str, off: Any, what: str) -> _Rule:
    """A rule on the least value of a column; a sample without a value breaks it."""

    def breaks(scores: Scores, rules: Prepare, _: Blocklist) -> Mask | None:
        least = getattr(rules, threshold)
        return None if least == off else ~(scores.numbers(column) >= np.float32(least))

    def tell(scores: Scores, rules: Prepare, _: Blocklist, i: int) -> str:
        value = scores.numbers(column)[i]
        shown = "was not measured" if np.isnan(value) else f"is {value:.4g}"
        return f"{what} {shown}, at least {getattr(rules, threshold):g} stays"

    return _Rule(breaks, tell)


def _taken_down(scores: Scores, _: Prepare, blocklist: Blocklist) -> Mask | None:
    if not len(blocklist):
        return None
    out = np.zeros(len(scores), dtype=np.bool_)
    for start in range(0, len(scores), _CHUNK):
        pairs = zip(scores.urls[start : start + _CHUNK], scores.sha256[start : start + _CHUNK], strict=True)
        for i, (url, sha256) in enumerate(pairs, start):
            out[i] = blocklist.blocks(url.as_py(), sha256.as_py()) is not None
    return out


def _tell_taken_down(scores: Scores, _: Prepare, blocklist: Blocklist, i: int) -> str:
    return f"on the store's takedown list: {blocklist.blocks(scores.urls[i].as_py(), scores.sha256[i].as_py())}"


def _too_small(scores: Scores, rules: Prepare, _: Blocklist) -> Mask:
    return np.asarray(np.minimum(scores.kept_widths, scores.kept_heights) < rules.min_side)


def _aspects(scores: Scores, at: slice) -> npt.NDArray[np.float64]:
    width, height = scores.kept_widths[at], scores.kept_heights[at]
    return np.asarray(np.maximum(width, height) / np.maximum(np.minimum(width, height), 1))


def _language(scores: Scores, rules: Prepare, _: Blocklist) -> Mask | None:
    if not rules.languages:
        return None
    found = scores.texts("language")
    wanted = pc.is_in(found, value_set=pa.array(list(rules.languages), pa.large_string()))
    return np.asarray(found.is_valid(), dtype=np.bool_) & ~np.asarray(wanted, dtype=np.bool_)


def _tell_language(scores: Scores, rules: Prepare, _: Blocklist, i: int) -> str:
    sure = scores.numbers("language_confidence")[i]
    found = scores.texts("language")[i].as_py()
    return f"the caption's language is {found} (probability {sure:.2f}), {', '.join(rules.languages)} stays"


def _personal(scores: Scores, rules: Prepare, _: Blocklist) -> Mask | None:
    if rules.personal_data != "drop":
        return None
    return np.asarray(pc.not_equal(scores.texts("personal"), "").fill_null(False))


def _blocked(scores: Scores, rules: Prepare, _: Blocklist) -> Mask | None:
    pattern = listed(rules.blocked_words)
    if pattern is None:
        return None
    out = np.zeros(len(scores), dtype=np.bool_)
    for start in range(0, len(scores), _CHUNK):
        for i, caption in enumerate(scores.captions[start : start + _CHUNK].to_pylist(), start):
            out[i] = pattern.search(caption) is not None
    return out


def _tell_blocked(scores: Scores, rules: Prepare, _: Blocklist, i: int) -> str:
    return f"the caption has the blocked word {listed(rules.blocked_words).search(scores.captions[i].as_py())[0]!r}"


def _size(scores: Scores, i: int) -> str:
    return f"{scores.kept_widths[i]}x{scores.kept_heights[i]}"


RULES: dict[DropReason, _Rule] = {
    DropReason.TAKEN_DOWN: _Rule(_taken_down, _tell_taken_down),
    DropReason.UNDECODABLE: _Rule(
        lambda s, r, b: ~s.decoded, lambda s, r, b, i: "the picture in the shard cannot be decoded"
    ),
    DropReason.TOO_SMALL: _Rule(
        _too_small, lambda s, r, b, i: f"{_size(s, i)} pixels, the shorter side must have {r.min_side}"
    ),
    DropReason.ASPECT_RATIO: _Rule(
        lambda s, r, b: _aspects(s, slice(None)) > r.max_aspect,
        lambda s, r, b, i: f"{_size(s, i)} is {_aspects(s, slice(i, i + 1))[0]:.2f} to 1, "
        f"at most {r.max_aspect:g} stays",
    ),
    DropReason.BLANK: _below("grey_std", "blank_std", None, "the standard deviation of the grey values"),
    DropReason.BLURRED: _below("sharpness", "min_sharpness", 0, "the variance of the Laplacian"),
    DropReason.LOW_ENTROPY: _below("entropy", "min_entropy", 0, "the entropy of the grey values"),
    DropReason.CAPTION_EMPTY: _Rule(
        lambda s, r, b: s.numbers("characters") == 0, lambda s, r, b, i: "no caption"
    ),
    DropReason.CAPTION_TOO_LONG: _Rule(
        lambda s, r, b: s.numbers("characters") > r.max_caption_chars,
        lambda s, r, b, i: f"{s.numbers('characters')[i]:.0f} characters, at most {r.max_caption_chars} stay",
    ),
    DropReason.CAPTION_TOO_SHORT: _below("words", "min_caption_words", 0, "the number of the caption's words"),
    DropReason.CAPTION_REPETITIVE: _Rule(
        lambda s, r, b: s.numbers("repetition") > np.float32(r.max_repetition),
        lambda s, r, b, i: f"{s.numbers('repetition')[i]:.0%} of the words repeat earlier ones, "
        f"at most {r.max_repetition:.0%} may",
    ),
    DropReason.CAPTION_LANGUAGE: _Rule(_language, _tell_language),
    DropReason.CAPTION_PERSONAL_DATA: _Rule(
        _personal, lambda s, r, b, i: f"personal data in the caption: {s.texts('personal')[i].as_py()}"
    ),
    DropReason.CAPTION_BLOCKED: _Rule(_blocked, _tell_blocked),
    DropReason.CLIP_SIMILARITY: _below(
        "clip_similarity", "min_clip_similarity", -1, "the similarity of picture and caption"
    ),
    DropReason.AESTHETIC: _below("aesthetic", "min_aesthetic", None, "the aesthetic value"),
}  # fmt: skip
