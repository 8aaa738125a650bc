"""Moderation: which prompts are not drawn and which pictures are not sent, and what is said about it.

A prompt goes through layers, the cheapest first: words that this recipe blocks, the lexicon's words and rules
(:mod:`serving.moderation_lexicon`, over text as :mod:`serving.moderation_text` reads it), and a classifier where one is
configured. A picture is held against concepts (:mod:`serving.moderation_pictures`). Every answer is a verdict with
categories, scores and the places concerned, so that nobody has to guess why something was refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.contracts.recipe_moderation import Moderation
from serving.moderation_lexicon import Finding, Lexicon, lexicon, words_of

if TYPE_CHECKING:
    from components.contracts.recipe import Recipe
    from components.runtime.storage import Store
    from serving.moderation_classifier import TextClassifier
    from serving.moderation_pictures import PictureCheck
    from serving.moderation_text import Token

Action = Literal["allow", "flag", "block"]
Layer = Literal["", "words", "lexicon", "rules", "classifier", "picture"]

BLOCKED_WORD = "blocked_word"  # category of the recipe's own serve.blocked_words
_SPOKEN = {
    "harassment": "harassment",
    "harassment/threatening": "threatening or harassing people",
    "hate": "hate",
    "hate/threatening": "threatening people for what they are",
    "illicit": "breaking the law",
    "illicit/violent": "weapons or destruction",
    "privacy": "other people's private data",
    "self-harm": "self-harm",
    "self-harm/instructions": "ways of harming oneself",
    "self-harm/intent": "harming oneself",
    "sexual": "sexual content",
    "sexual/minors": "sexual content with minors",
    "violence": "violence",
    "violence/graphic": "graphic violence",
    BLOCKED_WORD: "a word that is not allowed here",
}
_SUPPORT = " If you are thinking of harming yourself, please talk to somebody you trust or to a local crisis line."
_QUOTED = 4  # matching words named in a reason, and characters of each
_QUOTED_CHARS = 40


@dataclass(frozen=True)
class Verdict:
    """What moderation says of one prompt or picture.

    Args:
        action: "block": not drawn, or not sent. "flag": drawn and sent, and noted.
        categories: score 0..1 by category, of those found, the highest first; for pictures by ``concept/NAME`` how far
            the cosine is above the concept's threshold.
        spans: start and stop of the words concerned, in code points of the prompt as given; none for pictures.
        layer: which layer decided.
        reason: one sentence for the user, empty when allowed. Names nothing of the lexicon but the user's own words.
    """

    action: Action = "allow"
    categories: Mapping[str, float] = field(default_factory=dict)
    spans: tuple[tuple[int, int], ...] = ()
    layer: Layer = ""
    reason: str = ""

    def public(self) -> dict[str, Any]:
        """The verdict as JSON values, fit to be sent to whoever asked."""
        return {
            "action": self.action,
            "layer": self.layer,
            "categories": list(self.categories),
            "scores": dict(self.categories),
            "spans": [list(span) for span in self.spans],
            "reason": self.reason,
        }


ALLOWED = Verdict()


class Moderator:
    """Checks prompts and pictures by the recipe's policy. Has no state: safe to share between threads.

    Args:
        policy: the recipe's ``serve.moderation``.
        blocked_words: words and phrases that no prompt may have, in any case and disguise.
        words: the lexicon; None: the one that comes with the project.
        classifier, pictures: the layers with models, None where they are off.
    """

    def __init__(
        self,
        policy: Moderation,
        blocked_words: tuple[str, ...] = (),
        *,
        words: Lexicon | None = None,
        classifier: TextClassifier | None = None,
        pictures: PictureCheck | None = None,
    ) -> None:
        self._policy = policy
        blocked = [parts for word in blocked_words if (parts := words_of(word))]
        own = words or lexicon()
        # read with the blocked words known, so that they are found in disguise as well
        self._words = own.knowing(word for parts in blocked for word in parts) if blocked else own
        self._blocked: dict[str, list[tuple[str, ...]]] = {}
        for parts in blocked:
            self._blocked.setdefault(parts[0], []).append(parts)
        self._classifier, self._pictures = classifier, pictures

    @classmethod
    def of(cls, recipe: Recipe, store: Store | None = None) -> Moderator:
        """The moderator of a recipe; loads its models.

        Args:
            store: where the judge is found, for ``serve.moderation.pictures.clip: judge``.

        Raises:
            RecipeError: a folder that the recipe names holds no such model, or no judge is in the store.
        """
        policy, classifier, pictures = recipe.serve.moderation, None, None
        if policy.classifier:
            from serving.moderation_classifier import TextClassifier

            classifier = TextClassifier.load(policy.classifier, policy.classifier_labels)
        if policy.pictures.clip:
            from serving.moderation_pictures import PictureCheck

            pictures = PictureCheck.of(policy.pictures, store)
        return cls(policy, recipe.serve.blocked_words, classifier=classifier, pictures=pictures)

    def health(self) -> dict[str, str]:
        """Which layers are on, for ``/healthz``."""
        return {
            "prompts": "on" if self._policy.prompts else "off",
            "classifier": "on" if self._classifier else "off",
            "pictures": "on" if self._pictures else "off",
            "pictures_why": "" if self._pictures else "no CLIP is configured: serve.moderation.pictures",
        }

    def check_prompt(self, text: str) -> Verdict:
        """The verdict on a prompt of any language and length."""
        policy = self._policy
        if not (self._blocked or policy.prompts or self._classifier):
            return ALLOWED
        tokens = self._words.tokens(text)
        findings = self._blocked_in(tokens)
        if policy.prompts:
            findings += self._words.findings(tokens)
        found = self._judged(findings)
        if self._classifier and found.action != "block":  # the costliest layer, where nothing is decided yet
            scores = self._classifier.scores(text)
            findings += [Finding(category, score, (), "classifier") for category, score in scores.items()]
            found = self._judged(findings)
        if found.action == "allow":
            return ALLOWED
        return Verdict(found.action, found.categories, found.spans, found.layer, _reason(found, text))

    def check_image(self, pixels: NDArray[np.uint8]) -> Verdict:
        """The verdict on one picture, RGB ``[H, W, 3]``."""
        return self.check_images(pixels[None])[0]

    def check_images(self, pixels: NDArray[np.uint8]) -> list[Verdict]:
        """The verdicts on pictures, RGB ``[N, H, W, 3]``."""
        if self._pictures is None:
            return [ALLOWED] * len(pixels)
        return [_of_picture(found) for found in self._pictures.found(pixels)]

    def _blocked_in(self, tokens: list[Token]) -> list[Finding]:
        found = []
        for place, token in enumerate(tokens):
            for parts in self._blocked.get(token.word, ()):
                here = tokens[place : place + len(parts)]
                if tuple(one.word for one in here) == parts:
                    found.append(Finding(BLOCKED_WORD, 1.0, ((here[0].start, here[-1].stop),), "words"))
        return found

    def _judged(self, findings: list[Finding]) -> Verdict:
        """The findings as one verdict, without its reason."""
        policy = self._policy
        kept = [f for f in findings if f.category not in policy.allow and f.score >= policy.flag_at]
        kept += [f for f in findings if f.category == BLOCKED_WORD and f not in kept]
        if not kept:
            return ALLOWED
        kept.sort(key=lambda f: (f.category != BLOCKED_WORD, -f.score))
        scores: dict[str, float] = {}
        for finding in kept:
            scores.setdefault(finding.category, finding.score)
        blocked = kept[0].category == BLOCKED_WORD or kept[0].score >= policy.block_at
        spans = tuple(sorted({span for finding in kept for span in finding.spans}))
        layer: Any = kept[0].layer
        return Verdict("block" if blocked else "flag", scores, spans, layer)


def _reason(found: Verdict, text: str) -> str:
    """Why, in one sentence, with the user's own words where words decided."""
    categories = list(found.categories)
    spoken = " and ".join(dict.fromkeys(_SPOKEN.get(name, name) for name in categories[:2]))
    words = list(dict.fromkeys(" ".join(text[start:stop].split()) for start, stop in found.spans))
    quoted = ", ".join(repr(_cut(word)) for word in words[:_QUOTED]) + (", ..." if len(words) > _QUOTED else "")
    what = "was refused" if found.action == "block" else "is drawn, and noted"
    said = (
        f"The prompt {what}: it reads as {spoken}"
        if BLOCKED_WORD not in categories
        else (f"The prompt {what}: it holds {spoken}")
    )
    support = _SUPPORT if any(name.startswith("self-harm") for name in categories) else ""
    return said + (f" ({quoted})" if quoted else "") + "." + support


def _cut(word: str) -> str:
    return word if len(word) <= _QUOTED_CHARS else f"{word[: _QUOTED_CHARS - 3]}..."


def _of_picture(found: Mapping[str, tuple[float, str]]) -> Verdict:
    """The verdict on a picture from the concepts found in it: how far above the threshold, and the action of each."""
    if not found:
        return ALLOWED
    ordered = sorted(found.items(), key=lambda one: (("block", "flag", "log").index(one[1][1]), -one[1][0]))
    scores = {f"concept/{name}": above for name, (above, _) in ordered}
    worst = ordered[0][1][1]
    if worst == "log":
        return Verdict("allow", scores, (), "picture")
    names = ", ".join(name.replace("_", " ") for name, (_, action) in ordered if action == worst)
    what = "was withheld" if worst == "block" else "is sent, and noted"
    return Verdict(
        "block" if worst == "block" else "flag", scores, (), "picture", f"The picture {what}: it shows {names}."
    )
