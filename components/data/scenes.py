"""The vocabulary of the embedded world and the scenes that are said with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["single", "pair", "count"]
Relation = Literal["above", "below", "left of", "right of"]
Background = Literal["white", "black", "grey"]
Rgb = tuple[int, int, int]

#: Chosen by measured overlap: at ten pixels no two of them share more than 0.77 of their area.
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
#: RGB, 0..255. Far from each other and from the backgrounds, also after chroma subsampling.
COLOURS: dict[str, Rgb] = {
    "red": (216, 22, 36),
    "orange": (252, 142, 20),
    "yellow": (246, 214, 16),
    "green": (12, 134, 46),
    "cyan": (50, 218, 238),
    "blue": (36, 76, 226),
    "purple": (134, 28, 184),
    "pink": (252, 128, 200),
}
SIZES: tuple[str, ...] = ("small", "large")
PLACES: tuple[str, ...] = ("centre", "top left", "top right", "bottom left", "bottom right")
BACKGROUNDS: dict[str, Rgb] = {"white": (237, 237, 237), "black": (18, 18, 18), "grey": (128, 128, 128)}
KINDS: tuple[Kind, ...] = ("single", "pair", "count")
RELATIONS: tuple[Relation, ...] = ("above", "below", "left of", "right of")
COUNTS: tuple[int, ...] = (2, 3, 4)


@dataclass(frozen=True)
class Item:
    """One object; ``None`` stands for what a prompt leaves unsaid. Only singles have a place."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a picture shows, or what a prompt asks for.

    A single and a count have one item (a count's objects are equal), a pair has two: the first one said
    stands in ``relation`` to the second.
    """

    kind: Kind
    items: tuple[Item, ...]
    background: str | None = None
    relation: Relation | None = None
    count: int | None = None
