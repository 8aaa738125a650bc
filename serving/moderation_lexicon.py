"""The lexicon: word classes and patterns over them, from ``lexicon/*.toml``, and what of a prompt meets them.

A word alone seldom says whether a prompt does harm ("kill a process", "shoot a portrait"), so most rules want several
words in a certain relation, such as asking for a way, an act, and somebody as its object, and name contexts in
which the same words are harmless. ``lexicon/rules.toml`` explains the notation.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from serving.moderation_text import Reader, Token, fold

FOLDER = Path(__file__).resolve().parent / "lexicon"
_NEAR = 4  # words that may stand between the elements of "x > y"
_FAR = 40  # and of "x .. y", so that the longest prompt takes no longer than many short ones
_VOWELS = "aeiou"


@dataclass(frozen=True, slots=True)
class Choice:
    """One alternative of an element, as masks of classes: all of ``needs``, none of ``lacks``."""

    needs: int
    lacks: int


@dataclass(frozen=True, slots=True)
class Element:
    """What one word of a pattern may be, and what may stand before it: "", ">", ".." or "..."."""

    gap: str
    choices: tuple[Choice, ...]
    any_of: int  # union of the needs, to rule a pattern out early

    def takes(self, classes: int) -> bool:
        """Whether a word of these classes is one."""
        return any(classes & c.needs == c.needs and not classes & c.lacks for c in self.choices)


Pattern = tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """Patterns that mean the same, their category and score, and the contexts that say otherwise."""

    category: str
    score: float
    patterns: tuple[Pattern, ...]
    unless: int
    soften: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a text met: category, score 0..1, the words' spans in the text as given, and the layer."""

    category: str
    score: float
    spans: tuple[tuple[int, int], ...]
    layer: str


@dataclass(slots=True)
class _Word:
    """A word or phrase of the text with its classes."""

    classes: int
    start: int
    stop: int
    sentence: int


@dataclass(slots=True)
class _Classes:
    """Classes as bits, and the words and phrases of each."""

    bits: dict[str, int] = field(default_factory=dict)
    words: dict[str, int] = field(default_factory=dict)
    phrases: dict[str, list[tuple[tuple[str, ...], int]]] = field(default_factory=dict)

    def bit(self, name: str) -> int:
        return self.bits.setdefault(name, 1 << len(self.bits))

    def add(self, name: str, entry: str) -> None:
        parts = words_of(entry)
        if not parts:
            return
        if len(parts) == 1:
            self.words[parts[0]] = self.words.get(parts[0], 0) | self.bit(name)
            return
        known = self.phrases.setdefault(parts[0], [])
        for place, (phrase, classes) in enumerate(known):
            if phrase == parts:
                known[place] = (phrase, classes | self.bit(name))
                return
        known.append((parts, self.bit(name)))


class Lexicon:
    """Rules over word classes; :meth:`findings` says which of them a text meets. Never changes after it was made."""

    def __init__(self, classes: dict[str, Any], rules: dict[str, Any]) -> None:
        self._classes = known = _Classes()
        for name in ("poss", "capital", "stop", "turn"):
            known.bit(name)
        for kind, forms in (("verbs", _verb), ("nouns", _noun), ("words", _as_is), ("glue", _as_is)):
            for name, entries in classes.get(kind, {}).items():
                for entry in entries.split(","):
                    for form in forms(" ".join(entry.split())):
                        known.add(name, form)
        for phrases in known.phrases.values():
            phrases.sort(key=lambda one: -len(one[0]))
        self._derived = [
            (known.bit(made["class"]), [self._pattern(p) for p in made["match"]]) for made in rules["derive"]
        ]
        self._rules = [
            Rule(
                rule["category"], float(rule["score"]), tuple(self._pattern(p) for p in rule["match"]),
                self._mask(rule.get("unless", ())), self._mask(rule.get("soften", ())),
            )
            for rule in rules["rule"]
        ]  # fmt: skip
        self.categories = frozenset(rule.category for rule in self._rules)
        vocabulary = {*known.words, *(word for every in known.phrases.values() for one, _ in every for word in one)}
        worth = self._mask(name.strip() for name in classes["disguised"]["classes"].split(","))
        self._reader = Reader(vocabulary, (word for word, mask in known.words.items() if mask & worth))

    @classmethod
    def read(cls, folder: Path = FOLDER) -> Lexicon:
        """From ``classes.toml`` and ``rules.toml``."""
        with (folder / "classes.toml").open("rb") as classes, (folder / "rules.toml").open("rb") as rules:
            return cls(tomllib.load(classes), tomllib.load(rules))

    def knowing(self, words: Iterable[str]) -> Lexicon:
        """The same rules, with more words that are recognised in disguise."""
        other = copy.copy(self)
        other._reader = self._reader.knowing(words)
        return other

    def tokens(self, text: str) -> list[Token]:
        """The words of a text; disguised ones as the lexicon's words that they stand for."""
        return self._reader.tokens(text)

    def findings(self, tokens: Sequence[Token]) -> list[Finding]:
        """What the words of a text met, one finding for each rule at most."""
        words = self._annotated(tokens)
        if not words:
            return []
        present = 0
        for word in words:
            present |= word.classes
        stop, turn = self._classes.bits["stop"], self._classes.bits["turn"]
        for made, patterns in self._derived:
            for pattern in patterns:
                if all(element.any_of & present for element in pattern):
                    for first in range(len(words)):
                        if found := _matched(pattern, words, stop, turn, first):
                            words[found[-1]].classes |= made
                            present |= made
        findings = []
        for rule in self._rules:
            if rule.unless & present:
                continue
            for pattern in rule.patterns:
                if all(element.any_of & present for element in pattern) and (
                    places := _first_match(pattern, words, stop, turn)
                ):
                    score = rule.score / 2 if rule.soften & present else rule.score
                    spans = tuple((words[i].start, words[i].stop) for i in places)
                    findings.append(Finding(rule.category, score, spans, "lexicon" if len(pattern) == 1 else "rules"))
                    break
        return findings

    def _annotated(self, tokens: Sequence[Token]) -> list[_Word]:
        """Words with their classes; the longest phrase that begins at a word is read as one."""
        known, poss, capital = self._classes, self._classes.bits["poss"], self._classes.bits["capital"]
        out: list[_Word] = []
        at = 0
        while at < len(tokens):
            token = tokens[at]
            size, classes = 1, known.words.get(token.word, 0)
            for phrase, mask in known.phrases.get(token.word, ()):
                long = len(phrase)
                if at + long <= len(tokens) and all(tokens[at + i].word == phrase[i] for i in range(1, long)):
                    size, classes = long, mask
                    break
            last = tokens[at + size - 1]
            classes |= (poss if last.possessive else 0) | (capital if token.capital else 0)
            out.append(_Word(classes, token.start, last.stop, token.sentence))
            at += size
        return out

    def _mask(self, names: Iterable[str]) -> int:
        mask = 0
        for name in names:
            mask |= self._bit(name)
        return mask

    def _bit(self, name: str) -> int:
        if name.startswith("="):
            self._classes.add(name, name[1:])
        if name not in self._classes.bits:
            raise ValueError(f"the lexicon has no word class {name!r}")
        return self._classes.bits[name]

    def _pattern(self, text: str) -> Pattern:
        elements: list[Element] = []
        gap = ""
        for part in text.split():
            if part in (">", "..", "..."):
                gap = part
                continue
            choices = []
            for option in part.split("|"):
                wanted, *without = option.split("^")
                choices.append(Choice(self._mask(wanted.split("&")), self._mask(without)))
            union = 0
            for choice in choices:
                union |= choice.needs
            elements.append(Element(gap, tuple(choices), union))
            gap = ""
        return tuple(elements)


@cache
def lexicon() -> Lexicon:
    """The lexicon that comes with the project, read once a process."""
    return Lexicon.read()


def words_of(entry: str) -> tuple[str, ...]:
    """An entry of the lexicon divided as text is."""
    return tuple(token.word for token in Reader((), ()).tokens(fold(entry)))


def _first_match(pattern: Pattern, words: list[_Word], stop: int, turn: int) -> list[int] | None:
    for first in range(len(words)):
        if found := _matched(pattern, words, stop, turn, first):
            return found
    return None


def _matched(pattern: Pattern, words: list[_Word], stop: int, turn: int, first: int) -> list[int] | None:
    """Places of the words that the pattern takes with its first element at ``first``; None if it does not fit."""
    if not pattern[0].takes(words[first].classes):
        return None
    hopeless: set[tuple[int, int]] = set()  # (element, place before it): keeps the search short in repetitive text

    def extend(element: int, last: int) -> list[int] | None:
        if element == len(pattern):
            return [last]
        if (element, last) in hopeless:
            return None
        wanted = pattern[element]
        reach = {"": 1, ">": _NEAR + 1}.get(wanted.gap, _FAR)
        closed = {">": stop | turn, "..": turn}.get(wanted.gap, 0)
        for place in range(last + 1, min(last + reach, len(words) - 1) + 1):
            word = words[place]
            if word.sentence != words[last].sentence:
                break
            if wanted.takes(word.classes) and (rest := extend(element + 1, place)):
                return [last, *rest]
            if word.classes & closed:
                break
        hopeless.add((element, last))
        return None

    return extend(1, first)


def _as_is(entry: str) -> tuple[str, ...]:
    return (entry,)


def _noun(entry: str) -> tuple[str, ...]:
    """Singular and plural of a noun or of the last word of a phrase."""
    if entry.endswith(("s", "x", "ch", "sh")):
        return entry, f"{entry}es"
    if entry.endswith("y") and entry[-2:-1] not in _VOWELS:
        return entry, f"{entry[:-1]}ies"
    return entry, f"{entry}s"


def _verb(entry: str) -> tuple[str, ...]:
    """A verb, or a phrase that begins with one, as it stands and in the form in -ing."""
    verb, _, rest = entry.partition(" ")
    tail = f" {rest}" if rest else ""
    if verb.endswith("ie"):
        form = f"{verb[:-2]}ying"
    elif verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        form = f"{verb[:-1]}ing"
    elif (
        len(verb) > 2 and verb[-1] not in "aeiouwxyh" and verb[-2] in _VOWELS and verb[-3] not in _VOWELS
        and sum(letter in _VOWELS for letter in verb) == 1
    ):  # fmt: skip
        form = f"{verb}{verb[-1]}ing"
    else:
        form = f"{verb}ing"
    return entry, f"{form}{tail}"
