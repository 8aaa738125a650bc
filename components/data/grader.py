"""The exact grader: which attributes of a prompt a picture of the embedded world shows.

From pixels alone, with no learned model: the background is a smooth grey fit, the palette's colours are
unmixed from it (a pixel is a share of one colour over the background), connected components are the
objects, and the shape is the template with the best overlap (soft intersection over union) where mass and
centroid say it must lie. Mass and centroid do not change under blur, so neither do size and place.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.data.scenes import Item, Scene
from components.data.seeing import Seen, Sight, look
from components.data.world import parse

__all__ = ["Grade", "Seen", "Sight", "compare", "grade", "look"]


@dataclass(frozen=True)
class Grade:
    """The verdict on one picture.

    ``attributes`` has one entry for each thing the prompt says: ``background``, ``count`` (a single is one
    object, a pair two), ``relation`` and ``shape``, ``colour``, ``size``, ``place`` (for a pair with the
    prefix ``first `` or ``second ``). ``seen`` holds what the picture shows, ``reason`` is empty when all
    is right.
    """

    correct: bool
    attributes: dict[str, bool]
    seen: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def grade(image: npt.NDArray[np.uint8] | Image.Image, prompt: str | Scene) -> Grade:
    """Grade one picture (RGB, ``uint8`` of H x W x 3, or PIL) against a prompt or a scene.

    Only what the prompt says is graded. Noise gives ``correct=False`` with a reason.
    Raises ``ValueError`` for a prompt that is not of the world and for an array of another shape or type.
    """
    return compare(look(image), _scene(prompt) if isinstance(prompt, str) else prompt)


def compare(sight: Sight, scene: Scene) -> Grade:
    """Grade what was already seen by :func:`look`; many prompts can share one look."""
    verdicts: dict[str, bool] = {}
    if scene.background is not None:
        verdicts["background"] = sight.background == scene.background
    wanted = 2 if scene.kind == "pair" else scene.count if scene.kind == "count" else 1
    verdicts["count"] = len(sight.objects) == wanted
    if scene.kind == "pair":
        verdicts |= _pair(sight.objects, scene)
    else:
        verdicts |= _said(scene.items[0], sight.objects)
    wrong = [name for name, right in verdicts.items() if not right]
    reason = ""
    if wrong:
        reason = f"wrong {', '.join(wrong)}: saw {sight.describe()}"
    seen = {
        "background": sight.background,
        "count": len(sight.objects),
        "objects": [asdict(thing) for thing in sight.objects],
    }
    return Grade(not wrong, verdicts, seen, reason)


@lru_cache(maxsize=65536)
def _scene(prompt: str) -> Scene:
    return parse(prompt)


def _said(item: Item, objects: tuple[Seen, ...], prefix: str = "") -> dict[str, bool]:
    """What the item says, held against every one of the objects."""
    verdicts = {}
    for name in ("shape", "colour", "size", "place"):
        word = getattr(item, name)
        if word is not None:
            verdicts[prefix + name] = bool(objects) and all(getattr(o, name) == word for o in objects)
    return verdicts


def _pair(objects: tuple[Seen, ...], scene: Scene) -> dict[str, bool]:
    """The pair's verdicts under the assignment of objects to words that gets most of them right."""
    best: dict[str, bool] | None = None
    slots: list[Seen | None] = [*objects[:4]]
    slots += [None] * (2 - len(slots))
    for one, other in permutations(slots, 2):
        verdicts = _said(scene.items[0], (one,) if one else (), "first ")
        verdicts |= _said(scene.items[1], (other,) if other else (), "second ")
        if scene.relation is not None:
            verdicts["relation"] = bool(one and other and _relation(one, other) == scene.relation)
        if best is None or sum(verdicts.values()) > sum(best.values()):
            best = verdicts
    return best or {}


def _relation(one: Seen, other: Seen) -> str:
    """Where ``one`` lies, seen from ``other``, along the axis on which they are further apart."""
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
