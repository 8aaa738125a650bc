"""The embedded world: a vocabulary of captioned pictures that can be drawn at any size.

A scene is one object at a place ("a small red circle at the top left on a white background"), two
objects with a relation ("a small red circle above a large blue square on a grey background") or a
count of equal objects ("three small green stars on a black background"). Everything is deterministic:
a scene comes from a numpy ``Generator``, a picture from ``(scene, size, seed)``.

Lengths are fractions of the picture's side, so a scene looks the same at 32 and at 512 pixels. The words
and the grammar that reads them back are in :mod:`components.data.captions`; :func:`phrasings` and
:func:`parse` are re-exported here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from components.data.captions import parse, phrasings
from components.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    KINDS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Background,
    Item,
    Kind,
    Relation,
    Scene,
)

__all__ = [
    "BACKGROUNDS", "COLOURS", "COUNTS", "KINDS", "PLACES", "RELATIONS", "SHAPES", "SIZES",
    "Background", "Item", "Kind", "Relation", "Scene", "WorldSpec",
    "all_singles", "layout", "outline", "parse", "phrasings", "render", "sample_scene",
]  # fmt: skip

Points = tuple[tuple[float, float], ...]
Array = npt.NDArray[np.float32]

#: Range of an object's longest side. The gap between the two is what makes sizes readable after a blur.
EXTENT: dict[str, tuple[float, float]] = {"small": (0.29, 0.325), "large": (0.45, 0.495)}
#: Several large objects must fit beside each other with a gap, so they are a little smaller.
EXTENT_MANY: dict[str, tuple[float, float]] = {"small": (0.29, 0.325), "large": (0.405, 0.43)}
#: Centres of the places; corners lie so that a large object keeps a margin.
PLACE_CENTRE: dict[str, tuple[float, float]] = {
    "centre": (0.5, 0.5),
    "top left": (0.28, 0.28),
    "top right": (0.72, 0.28),
    "bottom left": (0.28, 0.72),
    "bottom right": (0.72, 0.72),
}
_JITTER = 0.03  # of a single object's centre
_MARGIN = 0.015  # no object comes nearer to the border than this
_LIGHT = 18.0  # grey levels: a faint light and shade lies over the background, up to this much
_TINT = 9.0  # grey levels: an object's colour moves by up to this much in each channel


@dataclass(frozen=True)
class WorldSpec:
    """A part of the vocabulary, and the size (pixels) of its pictures.

    Raises ``ValueError`` for a word outside the vocabulary and for an empty part.
    """

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = SIZES
    places: tuple[str, ...] = PLACES
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    kinds: tuple[Kind, ...] = ("single",)
    image_size: int = 32

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, ...]] = {
            "shapes": SHAPES, "colours": tuple(COLOURS), "sizes": SIZES, "places": PLACES,
            "backgrounds": tuple(BACKGROUNDS), "kinds": KINDS,
        }  # fmt: skip
        for name, words in known.items():
            given = tuple(getattr(self, name))
            object.__setattr__(self, name, given)  # lists from a recipe become tuples
            unknown = [word for word in given if word not in words]
            if unknown or not given or len(set(given)) != len(given):
                raise ValueError(f"world {name}: expected some of {', '.join(words)}, each once; found {list(given)!r}")
        if not 8 <= self.image_size <= 4096:
            raise ValueError(f"world image_size: expected 8 to 4096 pixels, found {self.image_size}")

    def without(self, *words: str) -> WorldSpec:
        """The same world lacking these shapes, colours, sizes, places, backgrounds or kinds."""
        fields = ("shapes", "colours", "sizes", "places", "backgrounds", "kinds")
        unknown = [word for word in words if not any(word in getattr(self, name) for name in fields)]
        if unknown:
            raise ValueError(f"world without {unknown!r}: expected words of the world to leave out")
        kept = {name: tuple(w for w in getattr(self, name) if w not in words) for name in fields}
        return WorldSpec(**kept, image_size=self.image_size)

    def contains(self, scene: Scene) -> bool:
        """True if every word that the scene says belongs to this world."""
        said: list[tuple[object, tuple[str, ...]]] = [(scene.kind, self.kinds)]
        said.append((scene.background, self.backgrounds))
        for item in scene.items:
            said += [(item.shape, self.shapes), (item.colour, self.colours),
                     (item.size, self.sizes), (item.place, self.places)]  # fmt: skip
        return all(word is None or word in words for word, words in said)


def all_singles(spec: WorldSpec) -> Iterator[Scene]:
    """Every scene of one object, in a fixed order (1,440 in the whole vocabulary)."""
    for shape in spec.shapes:
        for colour in spec.colours:
            for size in spec.sizes:
                for place in spec.places:
                    for background in spec.backgrounds:
                        yield Scene("single", (Item(shape, colour, size, place),), background)


def sample_scene(rng: np.random.Generator, spec: WorldSpec) -> Scene:
    """A scene drawn evenly: first its kind, then each of its attributes."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    kind = pick(spec.kinds)
    background = pick(spec.backgrounds)
    if kind == "single":
        item = Item(pick(spec.shapes), pick(spec.colours), pick(spec.sizes), pick(spec.places))
        return Scene("single", (item,), background)
    first = Item(pick(spec.shapes), pick(spec.colours), pick(spec.sizes))
    if kind == "count":
        return Scene("count", (first,), background, count=COUNTS[int(rng.integers(len(COUNTS)))])
    if len(spec.shapes) * len(spec.colours) < 2:
        raise ValueError("world: expected two shapes or two colours to sample pairs from, found one of each")
    while True:  # the two must differ in more than size, or the relation would be hard to say
        second = Item(pick(spec.shapes), pick(spec.colours), pick(spec.sizes))
        if (second.shape, second.colour) != (first.shape, first.colour):
            relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
            return Scene("pair", (first, second), background, relation=relation)


@cache
def outline(shape: str) -> Points:
    """The shape's polygon; its longer side spans -0.5..0.5 and it is centred on its bounding box."""
    turn = 2 * math.pi
    if shape == "circle":
        raw = [(math.cos(turn * i / 48), math.sin(turn * i / 48)) for i in range(48)]
    elif shape == "square":
        raw = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    elif shape == "triangle":
        raw = [(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    elif shape == "star":  # five points; 0.42 keeps the arms readable at ten pixels
        radii = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
        raw = [(r * math.sin(turn * i / 10), -r * math.cos(turn * i / 10)) for i, r in enumerate(radii)]
    elif shape == "cross":
        a, b = 0.32, 1.0
        raw = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
               (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]  # fmt: skip
    elif shape == "heart":
        steps = [turn * i / 48 for i in range(48)]
        raw = [(16 * math.sin(t) ** 3,
                -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
               for t in steps]  # fmt: skip
    else:
        raise ValueError(f"outline: expected one of {', '.join(SHAPES)}, found {shape!r}")
    xs, ys = [x for x, _ in raw], [y for _, y in raw]
    side = max(max(xs) - min(xs), max(ys) - min(ys))
    cx, cy = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return tuple(((x - cx) / side, (y - cy) / side) for x, y in raw)


def layout(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Where the scene's objects lie: (centre x, centre y, longest side) each, as fractions of the side."""
    if scene.kind == "single":
        item = scene.items[0]
        side = rng.uniform(*EXTENT[str(item.size)])
        cx, cy = PLACE_CENTRE[str(item.place)]
        spots = [(cx + rng.uniform(-_JITTER, _JITTER), cy + rng.uniform(-_JITTER, _JITTER), side)]
    elif scene.kind == "pair":
        sides = [rng.uniform(*EXTENT_MANY[str(item.size)]) for item in scene.items]
        gap = 0.05 + rng.uniform(0, 1) * max(0.0, min(0.13, 0.92 - sum(sides)))
        start = 0.5 - (sum(sides) + gap) / 2 + rng.uniform(-0.01, 0.01)
        along = [start + sides[0] / 2, start + sides[0] + gap + sides[1] / 2]
        across = [0.5 + rng.uniform(-0.1, 0.1) for _ in along]
        if scene.relation in ("below", "right of"):  # the first one said lies second
            along = [1 - a for a in along]
        upright = scene.relation in ("above", "below")
        spots = [(c, a, s) if upright else (a, c, s) for a, c, s in zip(along, across, sides, strict=True)]
    else:
        quarters = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
        chosen = sorted(rng.permutation(4)[: int(scene.count or 0)].tolist())
        side = rng.uniform(*EXTENT_MANY[str(scene.items[0].size)])
        free = min(0.05, 0.225 - side / 2)  # a gap of a twentieth is left between them
        spots = []
        for x, y in (quarters[i] for i in chosen):
            spots.append((x + rng.uniform(-free, free), y + rng.uniform(-free, free), side))
    return [(_inside(x, s), _inside(y, s), s) for x, y, s in spots]


def render(scene: Scene, size: int, seed: int, supersample: int = 4) -> Image.Image:
    """The scene as an RGB picture of ``size`` x ``size`` pixels; the same arguments give the same bytes.

    The seed moves and scales the objects a little within their class, shifts their colours by a few grey
    levels and lets a faint light fall over the background, so no two seeds give equal pictures.
    Raises ``ValueError`` for a scene that leaves an attribute unsaid.
    """
    _complete(scene)
    rng = np.random.default_rng([0xA7E, seed])
    spots = layout(scene, rng)
    canvas = _background(str(scene.background), size, rng)
    items = scene.items if scene.kind == "pair" else scene.items * len(spots)
    tints = {item.colour: rng.uniform(-_TINT, _TINT, 3) for item in scene.items}
    big = size * supersample
    for item, (x, y, side) in zip(items, spots, strict=True):
        mask = Image.new("L", (big, big), 0)
        # PIL's pixel centres lie on whole numbers, ours on halves
        corners = outline(str(item.shape))
        points = [((x + px * side) * big - 0.5, (y + py * side) * big - 0.5) for px, py in corners]
        ImageDraw.Draw(mask).polygon(points, fill=255)
        cover = np.asarray(mask.reduce(supersample), dtype=np.float32)[..., None] / 255.0
        colour = (np.asarray(COLOURS[str(item.colour)]) + tints[item.colour]).astype(np.float32)
        canvas += cover * (colour - canvas)
    return Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8), "RGB")


def _background(name: str, size: int, rng: np.random.Generator) -> Array:
    """A smooth grey field through 3 x 3 seeded points: flat to the eye, yet no two are alike."""
    points = rng.uniform(-_LIGHT, _LIGHT, (3, 3))
    t = ((np.arange(size) + 0.5) / size) * 2 - 1
    basis = np.stack([t * (t - 1) / 2, 1 - t * t, t * (t + 1) / 2])  # parabolas through -1, 0 and 1
    tone = np.clip(float(BACKGROUNDS[name][0]) + basis.T @ points @ basis, 0, 255).astype(np.float32)
    return np.repeat(tone[..., None], 3, axis=2)


def _inside(centre: float, side: float) -> float:
    low = side / 2 + _MARGIN
    return min(max(centre, low), 1 - low)


def _complete(scene: Scene) -> None:
    unsaid = [] if scene.background else ["background"]
    for item in scene.items:
        unsaid += [n for n in ("shape", "colour", "size") if getattr(item, n) is None]
        unsaid += ["place"] if scene.kind == "single" and item.place is None else []
    if scene.kind == "pair" and scene.relation is None:
        unsaid.append("relation")
    if scene.kind == "count" and scene.count is None:
        unsaid.append("count")
    if unsaid:
        raise ValueError(f"render: expected a whole scene, found no {', '.join(unsaid)}; sample_scene gives whole ones")
