"""Pictures as they are kept: orientation, modes, sizes, and files that are damaged or hostile."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.contracts.records import CollectReason
from components.data.guard import Refusal
from components.data.pictures import Picture, normalise

MALFORMED = Path(__file__).parents[4] / "shared" / "data" / "malformed_images.parquet"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data))
    image.load()
    return image


def photo(width: int, height: int) -> Image.Image:
    grey = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(grey.astype(np.uint8), "RGB")


def refusal_of(body: bytes, max_pixels: int = 10**7) -> CollectReason:
    with pytest.raises(Refusal) as refusal:
        normalise(body, 64, max_pixels)
    return refusal.value.reason


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF"]))
def test_the_shorter_side_is_reduced_and_never_enlarged(width: int, height: int, kind: str) -> None:
    picture = normalise(encoded(photo(width, height), kind), 64, 10**7)
    assert min(picture.width, picture.height) == min(64, width, height)
    assert abs(picture.width / picture.height - width / height) <= 0.02 * max(width / height, 1) + 1 / picture.height
    assert (picture.original_width, picture.original_height) == (width, height)
    assert opened(picture).size == (picture.width, picture.height) and opened(picture).mode == "RGB"


def test_small_and_lossless_pictures_are_kept_without_loss_and_photographs_as_jpeg() -> None:
    small = photo(40, 40)
    kept = normalise(encoded(small), 64, 10**7)
    assert kept.ending == "png" and opened(kept).tobytes() == small.tobytes()
    assert normalise(encoded(photo(40, 40), "JPEG"), 64, 10**7).ending == "png"
    assert normalise(encoded(photo(400, 300), "JPEG"), 256, 10**7).ending == "jpg"
    assert normalise(encoded(photo(400, 300), "PNG"), 256, 10**7).ending == "png"


def test_exif_orientation_is_applied_and_metadata_goes() -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste((255, 0, 0), (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    picture = normalise(encoded(image, "JPEG", exif=exif, quality=95), 64, 10**7)
    turned = opened(picture)
    assert turned.size == (40, 60) and (picture.original_width, picture.original_height) == (40, 60)
    assert turned.getpixel((20, 10))[0] > 200 > 100 > turned.getpixel((20, 10))[1]
    assert not turned.getexif()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (20, 20), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (20, 20), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("LA", (20, 20), (0, 0)), (255, 255, 255)),
        (Image.new("L", (20, 20), 90), (90, 90, 90)),
        (Image.new("1", (20, 20), 1), (255, 255, 255)),
        (Image.new("RGB", (20, 20), (1, 200, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 200, 3)),
        (Image.fromarray(np.full((20, 20), 0x8000, dtype=np.uint16)), (127, 127, 127)),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    found = opened(normalise(encoded(image), 64, 10**7)).getpixel((10, 10))
    assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), found


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    body = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert opened(normalise(body, 64, 10**7)).getpixel((5, 5)) == (255, 0, 0)


def bomb(side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [4_000, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    import tracemalloc

    tracemalloc.start()
    assert refusal_of(bomb(side)) is CollectReason.TOO_MANY_PIXELS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_a_file_that_ends_early_is_truncated(kind: str, share: float) -> None:
    body = encoded(photo(120, 90), kind)
    reason = refusal_of(body[: max(8, int(len(body) * share))])
    assert reason is CollectReason.TRUNCATED or (kind == "WEBP" and share < 0.1)


@pytest.mark.parametrize(
    "body", [b"", b"<!doctype html><html></html>", b"<svg xmlns=''/>", b"%!PS-Adobe-3.0 EPSF", b"hello" * 99]
)
def test_what_is_no_picture_says_so(body: bytes) -> None:
    assert refusal_of(body) is CollectReason.NOT_AN_IMAGE


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"BM"]),
)
def test_no_bytes_raise_anything_but_a_refusal(data: bytes, start: bytes) -> None:
    with contextlib.suppress(Refusal):
        normalise(start + data, 64, 10**6)


@pytest.mark.skipif(not MALFORMED.exists(), reason=f"the shared data set {MALFORMED.name} is not here")
def test_real_malformed_files_end_as_a_picture_or_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = []
    for body in pq.read_table(MALFORMED, columns=["bytes"])["bytes"].to_pylist():
        try:
            outcomes.append(normalise(body, 64, 50_000_000).ending)
        except Refusal as refusal:
            outcomes.append(str(refusal.reason))
    capfd.readouterr()  # libtiff writes to the terminal by itself
    assert len(outcomes) == 764 and outcomes.count("png") + outcomes.count("jpg") >= 190
