"""The built-in descriptor: equal for mirror images, near for copies, the same bytes every time."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from components.data.sketches import DIMENSIONS, SKETCH_BYTES, describe, planes, sketch
from tests.components.data.collections import drawn


def cosine(one: Image.Image, other: Image.Image) -> float:
    return float(describe(sketch(one)).astype(float) @ describe(sketch(other)).astype(float))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 90), st.integers(1, 90))
def test_any_picture_has_a_finite_vector_that_its_mirror_image_shares(seed: int, width: int, height: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    vector = describe(sketch(image))
    assert vector.shape == (DIMENSIONS,) and vector.dtype == np.float16
    assert abs(float(np.linalg.norm(vector.astype(float))) - 1) < 2e-3
    assert np.array_equal(vector, describe(sketch(image)))
    assert cosine(image, ImageOps.mirror(image)) > 0.97


def test_a_blank_picture_has_a_vector_without_form() -> None:
    vector = describe(sketch(Image.new("RGB", (40, 40), (128, 128, 128))))
    assert not vector.any()


def test_planes_are_what_was_sketched() -> None:
    image = drawn(1, (64, 64))
    data = sketch(image)
    assert len(data) == SKETCH_BYTES
    brightness, colour = planes(np.frombuffer(data, np.uint8)[None])
    seen = np.asarray(image.convert("YCbCr"))
    assert np.abs(brightness[0].astype(int) - seen[:, :, 0]).max() <= 1
    means = seen[:, :, 1:].reshape(16, 4, 16, 4, 2).mean(axis=(1, 3))
    assert np.abs(colour[0] - means).max() <= 1.5


def test_copies_are_nearer_than_strangers() -> None:
    pictures = [drawn(number, (160, 120)) for number in range(30)]
    cropped = [image.crop((0, 0, 144, 108)) for image in pictures]
    framed = [ImageOps.expand(image, (8, 6), fill="white") for image in pictures]
    turned = [image.rotate(5) for image in pictures]
    copies = [cosine(a, b) for changed in (cropped, framed, turned) for a, b in zip(pictures, changed, strict=True)]
    strangers = [cosine(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(copies) > 0.7 > max(strangers)
    assert np.mean(np.array(copies) > 0.78) > 0.9
