"""The watermark: unseen, read after what happens to pictures, and never where there is none."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from serving.watermark import Watermark, _layout, payload_of
from tests.serving.scenes import scene

Pixels = NDArray[np.uint8]
N = 40


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def half(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((width // 2, height // 2), Image.Resampling.BICUBIC))


def psnr(a: Pixels, b: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.fixture(scope="module")
def mark() -> Watermark:
    return Watermark(b"a secret of the test" * 2)


@pytest.fixture(scope="module")
def marked(mark: Watermark) -> list[Pixels]:
    return [mark.embed(scene(i), f"request {i}") for i in range(N)]


@pytest.mark.parametrize(
    ("change", "least"),
    [(lambda p: p, 1.0), (lambda p: jpeg(p, 75), 1.0), (half, 1.0), (lambda p: jpeg(half(p), 75), 0.9),
     (lambda p: p[:, ::-1], 1.0), (lambda p: np.clip(p * 0.8, 0, 255).astype(np.uint8), 0.95)],
    ids=["as it is", "JPEG 75", "half", "half, JPEG 75", "mirrored", "darker"],
)  # fmt: skip
def test_it_is_read_after(
    mark: Watermark, marked: list[Pixels], change: Callable[[Pixels], Pixels], least: float
) -> None:
    right = sum(mark.read(change(picture)) == payload_of(f"request {i}") for i, picture in enumerate(marked))
    assert right >= least * N


def test_it_is_hard_to_see(marked: list[Pixels]) -> None:
    likeness = [psnr(scene(i), picture) for i, picture in enumerate(marked)]
    assert np.median(likeness) >= 38 and min(likeness) >= 34
    change = [np.abs(scene(i).astype(int) - picture).max() for i, picture in enumerate(marked)]
    assert max(change) <= 15


def test_unmarked_pictures_carry_none(mark: Watermark) -> None:
    assert not any(mark.read(scene(i, side)) for side in (32, 64, 256) for i in range(300))


def test_another_secret_reads_and_forges_nothing(mark: Watermark, marked: list[Pixels]) -> None:
    other = Watermark(b"another secret" * 2)
    assert not any(other.read(picture) for picture in marked)
    assert not any(mark.read(other.embed(scene(i), f"request {i}")) for i in range(N))


@pytest.mark.parametrize("shape", [(32, 32), (48, 32), (64, 96), (333, 251), (512, 768)])
def test_sizes_and_sides(mark: Watermark, shape: tuple[int, int]) -> None:
    height, width = shape
    picture = mark.embed(scene(1, height, width), "a")
    assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    assert mark.read(picture) == payload_of("a")


def test_too_small_pictures_are_left_alone(mark: Watermark) -> None:
    tiny = scene(0, 24)
    assert np.array_equal(mark.embed(tiny, "a"), tiny) and mark.read(tiny) is None
    assert mark.read(np.zeros((1, 1, 3), np.uint8)) is None


@pytest.mark.parametrize("level", [0, 3, 128, 255])
def test_flat_pictures_are_marked_too_and_never_wrap_around(mark: Watermark, level: int) -> None:
    flat = np.full((128, 128, 3), level, np.uint8)
    picture = mark.embed(flat, "a")
    assert np.abs(picture.astype(int) - level).max() <= 15
    assert mark.read(picture) == payload_of("a")


@settings(max_examples=25, deadline=None)
@given(st.integers(32, 90), st.integers(32, 90), st.integers(0, 10**6), st.text(max_size=20))
def test_any_picture_reads_as_marked(height: int, width: int, seed: int, request: str) -> None:
    mark = Watermark(b"s" * 32)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = pixels.copy()
    found = mark.read(mark.embed(pixels, request))
    assert np.array_equal(pixels, before)  # not changed in place
    assert found in (payload_of(request), None)  # noise without structure is the worst case: it may stay unmarked


def test_the_layout_does_not_change_between_versions() -> None:
    """Marks of years ago must stay readable: the picture of a fixed secret is a fixed one."""
    flat = Watermark(bytes(range(32))).embed(np.full((64, 64, 3), 128, np.uint8), "fixed")
    assert Watermark(bytes(range(32))).read(flat) == payload_of("fixed") == bytes.fromhex("992a9345")
    layout = _layout(bytes(range(32)))
    assert layout.bit[:6].tolist() == [37, 31, 26, 2, 30, 25]
