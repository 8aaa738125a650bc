"""Columns that describe a prompt against the training captions; generic for any captions in any words.

Novelty is always relative to *other* captions: a training caption is compared with all captions but itself
(leave-one-out). So a long tail of words that occur once, as real captions have, is usual in the reference
too and does not look like drift when it shows up in prompts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

#: Columns that count towards the drift score, and how Evidently is to read them: *what* is asked for.
SCORED: dict[str, str] = {
    "rarest": "numerical",  # of the word that fewest captions hold: -log2 of their share, in whole bits
    "unseen_share": "numerical",  # share of the words that no other caption has
    "unseen_words": "categorical",  # none | one | several
    "topic": "categorical",  # the rarest of those words that the captions use often, or "other"
}
#: Columns that are compared and drawn and do not count: *how* it is asked, and the pictures that were made.
#: "A red star" for "a red star on a white background" is another phrasing, and no reason to train again.
DESCRIBED: dict[str, str] = {
    "words": "numerical",
    "characters": "numerical",
    "rarity": "numerical",  # mean over the words of -log2 of the share of captions that hold the word
    "familiarity": "numerical",  # largest share of the words that one single other caption holds
    "brightness": "numerical",  # mean of the channel means, 0..1
    "contrast": "numerical",  # mean of the channels' standard deviations, 0..1
    "colourfulness": "numerical",  # largest minus smallest channel mean, 0..1
}
PICTURES = ("brightness", "contrast", "colourfulness")
TOPICS = 20  # frequent words that may be a topic
_RARE = 10  # captions that hold a word
_COMPARED = 20_000  # distinct captions that familiarity looks at; bounds its memory to 40 MB

#: Grammar and manners: words that ask, join or point, and name nothing that could be seen.
_NEUTRAL = frozenset(
    word
    for line in (
        "a about all also am an and any are art as at be being by can can't could create do does draw for from",
        "generate get give go has have hello her hi his how i i'd i'll i'm illustration image in into is it it's",
        "its just kindly let let's like make me my need no not of on one or our out over photo photograph picture",
        "please render same she show showing shows so some such thank thanks that the their them then there these",
        "they this those through to up us very want was we what where which while who will with would you your",
    )
    for word in line.split()
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, in order."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def content_words(text: str) -> list[str]:
    """The distinct words of a text that may name something, in order."""
    return [word for word in dict.fromkeys(words_of(text)) if word not in _NEUTRAL]


@dataclass(frozen=True)
class CaptionIndex:
    """What the training captions know: in how many of them each word occurs.

    Args:
        captions: all training captions, repeats included. At least two.
    """

    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.captions) < 2:
            raise ValueError(f"CaptionIndex: expected at least 2 captions, found {len(self.captions)}")

    @cached_property
    def count(self) -> Counter[str]:
        """Number of captions that hold the word."""
        return Counter(word for caption in self.captions for word in content_words(caption))

    @cached_property
    def topics(self) -> dict[str, int]:
        """The most frequent words but those that more than half of the captions hold, with their counts."""
        frequent = [item for item in self.count.items() if item[1] <= len(self.captions) / 2]
        return dict(sorted(frequent, key=lambda item: (-item[1], item[0]))[:TOPICS])

    @cached_property
    def _sets(self) -> Counter[frozenset[str]]:
        return Counter(frozenset(content_words(caption)) for caption in self.captions)

    def unknown(self, prompt: str) -> list[str]:
        """The words of the prompt that no caption holds, in order."""
        return [word for word in content_words(prompt) if word not in self.count]

    def describe(self, texts: Sequence[str], own: bool = False) -> dict[str, list[Any]]:
        """All columns but those of the pictures, one value a text.

        Args:
            texts: prompts; or captions of this index, each then judged by all captions but itself (``own``).
        """
        rows = [self._row(text, int(own)) for text in texts]
        names = rows[0] if rows else {}
        columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
        columns["familiarity"] = self._familiarity(texts, own).tolist()
        return columns

    def _row(self, text: str, own: int) -> dict[str, Any]:
        content = content_words(text)
        # leaving one out matters for rare words; elsewhere it would only shift captions by a hair against prompts
        seen = [n - own if n < _RARE else n for n in (self.count[word] for word in content)]
        # half a caption for a word never seen keeps the logarithm finite and the order right
        rarities = [-math.log2(max(n, 0.5) / len(self.captions)) for n in seen]
        unseen = sum(n <= 0 for n in seen)
        topics = [word for word in content if word in self.topics]
        return {
            "words": len(words_of(text)),
            "rarity": sum(rarities) / len(rarities) if rarities else 0.0,
            "rarest": round(max(rarities, default=0.0)),
            "unseen_share": unseen / len(content) if content else 0.0,
            "unseen_words": ("none", "one")[unseen] if unseen < 2 else "several",
            "topic": min(topics, key=lambda word: (self.topics[word], word), default="other"),
            "characters": len(text),
        }

    def _familiarity(self, texts: Sequence[str], own: bool) -> npt.NDArray[np.float64]:
        from scipy.sparse import csr_matrix  # a large import that the other columns do not need

        position = {word: i for i, word in enumerate(self.count)}

        def matrix(sets: Sequence[frozenset[str]]) -> Any:
            known = [[position[word] for word in words if word in position] for words in sets]
            starts = np.cumsum([0, *map(len, known)])
            flat = [index for row in known for index in row]
            ones = np.ones(len(flat), np.float32)
            return csr_matrix((ones, flat, starts), shape=(len(sets), len(position)))

        asked = [frozenset(content_words(text)) for text in texts]
        unique = list(dict.fromkeys(asked))
        kept = list(self._sets)[:_COMPARED]
        held = matrix(kept).T.tocsr()
        where = {words: i for i, words in enumerate(kept)}
        best: dict[frozenset[str], float] = {}
        for start in range(0, len(unique), 512):  # bounds the product to 512 rows of captions
            part = unique[start : start + 512]
            shared = (matrix(part) @ held).toarray()
            if own:  # a caption said once must not be measured by itself
                for row, words in enumerate(part):
                    if self._sets[words] < 2 and words in where:
                        shared[row, where[words]] = 0.0
            for words, most in zip(part, shared.max(axis=1), strict=True):
                best[words] = float(most) / len(words) if words else 1.0
        return np.array([best[words] for words in asked], dtype=np.float64)


def picture_columns(stats: npt.NDArray[np.floating[Any]]) -> dict[str, list[float]]:
    """The picture columns of :data:`DESCRIBED`, from rows of mean and standard deviation of R, G, B (0..1)."""
    means, deviations = stats[:, :3], stats[:, 3:6]
    return {
        "brightness": means.mean(axis=1).tolist(),
        "contrast": deviations.mean(axis=1).tolist(),
        "colourfulness": (means.max(axis=1) - means.min(axis=1)).tolist(),
    }


def pixel_stats(pixels: bytes) -> npt.NDArray[np.float32]:
    """Mean R, G, B and standard deviation R, G, B (0..1) of uint8 RGB pixels, as the logbook keeps them."""
    picture = np.frombuffer(pixels, np.uint8).reshape(-1, 3).astype(np.float32) / 255.0
    return np.concatenate([picture.mean(axis=0), picture.std(axis=0)]).astype(np.float32)
