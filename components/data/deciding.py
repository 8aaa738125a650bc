"""Which scored samples become rows, in which cluster and split, and why the others do not. No picture is opened."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.errors import DataError
from components.contracts.recipe import Prepare, Run
from components.contracts.records import DropReason

if TYPE_CHECKING:
    from components.data.dedup import Duplicates
    from components.data.filtering import Rejections
    from components.data.scores import Scores
    from components.data.takedown import Blocklist

Ints = npt.NDArray[np.int64]
TIERS = ("", "exact", "near", "semantic")  # by the code of `Duplicates.tier`
_TIER_REASONS = (None, DropReason.DUPLICATE_EXACT, DropReason.DUPLICATE_NEAR, DropReason.DUPLICATE_SEMANTIC)
_REASONS = list(DropReason)
_WORD = re.compile(r"\w+")


@dataclass
class Decision:
    """What becomes of every sample.

    Attributes:
        scores: of all samples. rules: of the recipe.
        at: positions of the samples that no filter took, ascending; ``duplicates`` runs beside them.
        reasons: int8, one a sample: 0 where it is kept, else 1 + the position of its ``DropReason``.
        aside: positions of quarantined samples, with the expectation that each failed.
    """

    scores: Scores
    rules: Prepare
    rejections: Rejections
    at: Ints
    duplicates: Duplicates
    reasons: npt.NDArray[np.int8]
    aside: dict[int, str]

    @property
    def kept(self) -> Ints:
        """Positions of the samples that become rows, ascending."""
        return np.flatnonzero(self.reasons == 0)

    def quarantine(self, positions: Mapping[int, str]) -> None:
        """Set kept samples aside, each with the expectation that it fails."""
        for position, expectation in positions.items():
            self.reasons[position] = _code(DropReason.QUARANTINED)
            self.aside[position] = expectation

    def counts(self) -> dict[str, int]:
        """Number of dropped samples by reason, sorted by name."""
        found = np.bincount(self.reasons, minlength=len(_REASONS) + 1)[1:]
        return {str(r): int(n) for r, n in sorted(zip(_REASONS, found, strict=True)) if n}

    def clusters(self, at: Ints) -> list[str]:
        """Cluster of samples that no filter took: the id of its first member, which a longer list never changes."""
        return self.scores.id_texts(self.firsts(at))

    def firsts(self, at: Ints) -> Ints:
        """For samples that no filter took: the position of the first member of their cluster."""
        return self.duplicates.first[self._places(at)]

    def survivors(self, at: Ints) -> Ints:
        """For samples that no filter took: the position of the one that stays for them."""
        return self.duplicates.survivor[self._places(at)]

    def explained(self, at: Ints) -> list[tuple[DropReason, str]]:
        """Why each of these dropped samples was dropped, with one line for people."""
        reasons = [_REASONS[code - 1] for code in self.reasons[at].tolist()]
        copies = np.flatnonzero(np.isin(self.reasons[at], [_code(r) for r in _TIER_REASONS if r]))
        survivors = pa.array(self.survivors(at[copies]))
        urls = dict(zip(copies.tolist(), self.scores.urls.take(survivors).to_pylist(), strict=True))
        hashes = pc.equal(self.scores.sha256.take(pa.array(at[copies])), self.scores.sha256.take(survivors))
        same_bytes = dict(zip(copies.tolist(), hashes.to_pylist(), strict=True))
        found = []
        for k, (i, reason) in enumerate(zip(at.tolist(), reasons, strict=True)):
            if reason is DropReason.QUARANTINED:
                words = f"does not meet: {self.aside[i]}"
            elif reason is DropReason.DUPLICATE_EXACT:
                words = f"the same {'bytes' if same_bytes[k] else 'pixels'} as {urls[k]}"
            elif reason is DropReason.DUPLICATE_NEAR:
                words = f"nearly the same picture as {urls[k]}"
            elif reason is DropReason.DUPLICATE_SEMANTIC:
                words = f"shows the same as {urls[k]}"
            else:
                words = self.rejections.detail(i)
            found.append((reason, words))
        return found

    def _places(self, at: Ints) -> Ints:
        return np.searchsorted(self.at, at)


def decide(scores: Scores, rules: Prepare, run: Run, blocklist: Blocklist, aside: Mapping[int, str]) -> Decision:
    """Filter, and find duplicates among what is left.

    Args:
        aside: positions that failed an expectation on the ledger, with its words; dropped as quarantined unless a
            filter takes them anyway.

    Raises:
        DataError: no sample stays.
        RecipeError: a threshold is set for something that the recipe does not measure.
    """
    from components.data.dedup import find_duplicates
    from components.data.filtering import RULES, rejections

    rejected = rejections(scores, rules, blocklist)
    reasons = np.array([0, *map(_code, RULES)], dtype=np.int8)[rejected.codes]
    set_aside = {position: words for position, words in aside.items() if not reasons[position]}
    for position in set_aside:
        reasons[position] = _code(DropReason.QUARANTINED)
    at = np.flatnonzero(reasons == 0)
    duplicates = find_duplicates(scores, at, rules, run)
    for tier, reason in enumerate(_TIER_REASONS):
        if reason is not None:
            reasons[at[duplicates.tier == tier]] = _code(reason)
    decision = Decision(scores, rules, rejected, at, duplicates, reasons, set_aside)
    if not len(decision.kept):
        dropped = sorted(decision.counts().items(), key=lambda item: -item[1])[:4]
        raise DataError(
            f"No sample is left: all {len(scores)} were dropped ({', '.join(f'{n} {r}' for r, n in dropped)})",
            expected="rows to train on",
            remedy="correct the thresholds in the recipe's prepare section, or collect other pictures",
        )
    return decision


def split_of(cluster: str, holdout: float) -> str:
    """The split of a cluster, from its id alone; the share ``holdout`` of all possible ids is held out."""
    number = int(hashlib.sha256(f"split:{cluster}".encode()).hexdigest()[:13], 16)
    return "holdout" if number < holdout * 16**13 else "train"


class Captions:
    """Captions as the recipe wants them: clean, and with personal data redacted unless it says to keep it."""

    def __init__(self, scores: Scores, rules: Prepare) -> None:
        self._captions, self._personal = scores.captions, None
        if rules.personal_data != "keep":
            self._personal = scores.texts("personal")

    def of(self, at: Ints) -> list[str]:
        """The captions of the samples at these positions."""
        from components.data.wording import redact

        places = pa.array(at)
        found: list[str] = self._captions.take(places).to_pylist()
        if self._personal is not None:
            for i, kinds in enumerate(self._personal.take(places).to_pylist()):
                if kinds:
                    found[i] = redact(found[i])
        return found


def conflicting(some: Sequence[str], others: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which pairs of captions say something else; case, punctuation and white space say nothing."""
    return np.array([_said(a) != _said(b) for a, b in zip(some, others, strict=True)], dtype=np.bool_)


def _said(caption: str) -> list[str]:
    return _WORD.findall(caption.casefold())


def _code(reason: DropReason) -> int:
    return _REASONS.index(reason) + 1
