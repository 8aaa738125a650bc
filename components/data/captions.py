"""The language of the embedded world: scenes to phrasings, and prompts back to scenes.

Every phrasing of a scene parses back to that scene. A prompt may also say less ("a red star"): what it
leaves unsaid is ``None``, and only what it says can be graded.
"""

from __future__ import annotations

import re

from components.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Item,
    Relation,
    Scene,
)

_NUMBER = {"two": 2, "three": 3, "four": 4}
_WORD_FOR = {n: word for word, n in _NUMBER.items()}
_INVERSE: dict[str, str] = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_SPELLINGS = {
    "gray": "grey", "center": "centre", "middle": "centre", "big": "large", "little": "small",
    "tiny": "small", "upper": "top", "lower": "bottom", "image": "picture", "photo": "picture",
    "backdrop": "background",
    "2": "two", "3": "three", "4": "four", "color": "colour", "under": "below", "underneath": "below",
    "object": "shape", "objects": "shapes",
}  # fmt: skip
_NOUN = {f"{shape}{end}": shape for shape in SHAPES for end in ("", "s")} | {"crosses": "cross"}
_ARTICLES = r"(?:(?:a|an|the) )?"
_BACK = "|".join(BACKGROUNDS)
_BACKGROUND = re.compile(
    rf"(?:(?:on|against|with|in|and) )?{_ARTICLES}({_BACK}) background\b"
    rf"|(?:(?:of|on|in) )?{_ARTICLES}({_BACK}) picture\b(?: (?:of|with|showing)\b)?"
    rf"|\b(?:on|against) ({_BACK})\b(?! (?:{'|'.join(_NOUN)})\b)"
)
_PLACE = re.compile(
    rf"(?:(?:at|in|on|near|to) )?{_ARTICLES}\b({'|'.join(PLACES)})\b"
    r"(?: (?:corner|part))?(?: of the picture| of)?"
)
_RELATION = re.compile(r"(?:(?:is|placed|and) )?(?:to the |on the |at the )?\b(above|below|left of|right of)\b")
_ITEM = re.compile(
    rf"^{_ARTICLES}(?P<count>{'|'.join(_NUMBER)})?\s*"
    rf"(?P<size>{'|'.join(SIZES)})?\s*(?P<colour>{'|'.join(COLOURS)})?\s*"
    rf"(?P<noun>{'|'.join(sorted(_NOUN, key=len, reverse=True))}|shapes?)$"
)
_FILLER = re.compile(r"\b(?:there (?:is|are)|picture (?:of|with)|showing|with|and|of|on|in|a picture)\b")


def phrasings(scene: Scene) -> list[str]:
    """Several ways to say the scene, plainest first; each parses back to it.

    Attributes that the scene leaves unsaid are left out.
    """
    back = scene.background
    on = f" on a {back} background" if back else ""
    framed = f"a {back} picture" if back else "a picture"
    comma = f", {back} background" if back else ""
    opening = f"on a {back} background, " if back else "there is " if scene.kind != "count" else "there are "
    if scene.kind == "pair":
        first, second = (_noun(item) for item in scene.items)
        relation = _spoken(scene.relation)
        core = f"{first} {relation} {second}"
        return _distinct([
            f"{core}{on}",
            f"{framed} with {core}",
            f"{_bare(first)} {relation} {_bare(second)}{comma}",
            f"{opening}{core}",
            f"{framed} of {core}",
        ])  # fmt: skip
    thing = _noun(scene.items[0], scene.count)
    if scene.kind == "count":
        return _distinct([
            f"{thing}{on}",
            f"{framed} with {thing}",
            f"{thing}{comma}",
            f"{opening}{thing}",
            f"there are {thing}{on}",
        ])  # fmt: skip
    place = scene.items[0].place
    if place is None:
        return _distinct([
            f"{thing}{on}", f"{framed} with {thing}", f"{_bare(thing)}{comma}", f"{opening}{thing}"
        ])  # fmt: skip
    corner = "" if place == "centre" else " corner"
    at = "in" if place == "centre" else "at"
    return _distinct([
        f"{thing} {at} the {place}{on}",
        f"{framed} with {thing} in the {place}",
        f"{_bare(thing)}, {place}{comma}",
        f"{opening}{thing} {at} the {place}",
        f"{thing} in the {place}{corner} of {framed}",
    ])  # fmt: skip


def parse(prompt: str) -> Scene:
    """The scene that a prompt asks for; what it leaves unsaid is ``None``.

    Raises ``ValueError`` for a prompt that is not of this world: an unknown word, two places, a count of
    unequal objects, or no noun.
    """
    text = " ".join(_SPELLINGS.get(word, word) for word in re.findall(r"[a-z0-9]+|,", prompt.lower()))
    backgrounds, text = _take(_BACKGROUND, text)
    places, text = _take(_PLACE, text)
    relations, text = _take(_RELATION, text)
    if max(len(backgrounds), len(places), len(relations)) > 1:
        raise _foreign(prompt, "a background, a place and a relation at most once")
    parts = [_tidy(part) for part in text.split("|")]
    items, counts = [], []
    for part in parts:
        match = _ITEM.match(part)
        if match is None:
            raise _foreign(prompt, f"words of the world instead of {part!r}" if part else "a shape")
        place = places[0] if places else None
        items.append(Item(_NOUN.get(match["noun"]), match["colour"], match["size"], place))
        if (match["count"] is not None) != (match["noun"] not in SHAPES and match["noun"] != "shape"):
            raise _foreign(prompt, "a plural with two, three or four, and only with these")
        counts += [_NUMBER[match["count"]]] if match["count"] else []
    background = backgrounds[0] if backgrounds else None
    if relations:
        if len(items) != 2 or places or counts:
            raise _foreign(prompt, "two single objects with a relation, and no place")
        relation: Relation = next(r for r in RELATIONS if r == relations[0])
        return Scene("pair", tuple(items), background, relation=relation)
    if counts:
        if places:
            raise _foreign(prompt, "no place for several objects")
        return Scene("count", tuple(items), background, count=counts[0])
    return Scene("single", tuple(items), background)


def inverse(scene: Scene) -> Scene:
    """The same pair said from the other object: "a above b" becomes "b below a"."""
    if scene.kind != "pair" or scene.relation is None:
        raise ValueError(f"inverse: expected a pair with a relation, found {scene.kind!r}")
    relation: Relation = next(r for r in RELATIONS if r == _INVERSE[str(scene.relation)])
    return Scene("pair", (scene.items[1], scene.items[0]), scene.background, relation=relation)


def _take(pattern: re.Pattern[str], text: str) -> tuple[list[str], str]:
    """All words that the pattern finds, and the text with a bar in place of each."""
    found = [next(group for group in match.groups() if group) for match in pattern.finditer(text)]
    return found, pattern.sub("|" if pattern is _RELATION else " , ", text)


def _tidy(part: str) -> str:
    return " ".join(_FILLER.sub(" ", part.replace(",", " ")).split())


def _noun(item: Item, count: int | None = None) -> str:
    words = [w for w in (item.size, item.colour) if w]
    noun = item.shape or "shape"
    if count:
        return " ".join([_WORD_FOR[count], *words, noun + ("es" if noun.endswith("s") else "s")])
    words.append(noun)
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _bare(noun: str) -> str:
    return noun.split(" ", 1)[1]


def _spoken(relation: str | None) -> str:
    return f"to the {relation}" if relation in ("left of", "right of") else str(relation)


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _foreign(prompt: str, expected: str) -> ValueError:
    return ValueError(f"prompt not of the world: expected {expected}; found {prompt!r}")
