"""Copies are told from different pictures by laying one over the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from components.data.sketches import SKETCH_BYTES, sketch
from components.data.verifying import Comparison, Limits, compare
from tests.benchmarks.perturbations import CHANGES

LIMITS = Limits()


def photograph(seed: int, size: tuple[int, int] = (240, 200)) -> Image.Image:
    """Structure at all scales, as in a photograph, with objects of several colours."""
    rng = np.random.default_rng(seed)
    values = np.zeros((size[1], size[0], 3), dtype=np.float32)
    for side, share in ((4, 0.4), (9, 0.35), (18, 0.25)):
        layer = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        values += share * np.asarray(layer.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    objects = image.copy()
    draw = ImageDraw.Draw(objects)
    for _ in range(6):
        x, y, r = rng.integers(20, 200), rng.integers(20, 180), rng.integers(10, 40)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return Image.blend(image, objects, 0.5)  # what is behind shows through: nothing in it is flat


def clock(hour: int, face: str = "#ddeeff") -> Image.Image:
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, 120, 120), fill=face, outline="#123", width=8)
    for tick in range(12):
        angle = np.pi * tick / 6
        x, y = 64 + 44 * np.sin(angle), 64 - 44 * np.cos(angle)
        draw.rectangle((x - 4, y - 4, x + 4, y + 4), fill="#234567")
    angle = np.pi * hour / 6
    draw.line((64, 64, 64 + 34 * np.sin(angle), 64 - 34 * np.cos(angle)), fill="#900", width=8)
    return image


def looked(one: Image.Image, other: Image.Image) -> Comparison | None:
    return compare(*(np.frombuffer(sketch(image), np.uint8) for image in (one, other)), LIMITS)


def copies(one: Image.Image, other: Image.Image) -> bool:
    found = looked(one, other)
    return found is not None and found.copy(LIMITS)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_a_copy_from_either_side(change: str) -> None:
    rng = np.random.default_rng(5)
    tied = 0
    for seed in range(10):
        image = photograph(seed)
        changed = CHANGES[change](image, rng)
        tied += copies(image, changed) and copies(changed, image)
    assert tied >= 8


def test_different_photographs_are_none() -> None:
    pictures = [photograph(seed) for seed in range(16)]
    assert not any(copies(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_the_same_photograph_with_another_object_is_none() -> None:
    for seed in range(8):
        image, other = photograph(seed), photograph(seed)
        ImageDraw.Draw(other).rectangle((60, 40, 190, 160), fill=(20, 200, 90))
        assert not copies(image, other)


def test_graphics_that_differ_in_a_detail_are_two() -> None:
    for one, other in ((clock(3), clock(4)), (clock(5), clock(11)), (clock(6), clock(6, "#ddccaa"))):
        found = looked(one, other)
        assert found is not None and found.graphic
        assert found.another(LIMITS) and not found.copy(LIMITS)
    assert copies(clock(6), clock(6).resize((96, 96), Image.Resampling.LANCZOS))
    same = looked(clock(3), ImageOps.mirror(clock(3)))
    assert same is not None and same.copy(LIMITS) and not same.another(LIMITS)


def test_of_pictures_with_hardly_any_structure_nothing_is_said() -> None:
    one, other = (Image.new("RGB", (64, 64), "grey") for _ in range(2))
    ImageDraw.Draw(other).rectangle((10, 10, 20, 20), fill="yellow")
    for a, b in ((one, one), (one, other), (other, other)):
        found = looked(a, b)
        assert found is None or not (found.copy(LIMITS) or found.another(LIMITS))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from([1, 16, 256]))
def test_any_two_sketches_can_be_compared(one: int, other: int, levels: int) -> None:
    a, b = (np.random.default_rng(seed).integers(0, levels, SKETCH_BYTES).astype(np.uint8) for seed in (one, other))
    first, again = compare(a, b, LIMITS), compare(a, b, LIMITS)
    assert first == again
    if first is not None:
        assert 0 <= first.agreeing <= 1 and np.isfinite(first.median_correlation)
