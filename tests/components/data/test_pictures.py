"""Pictures as they are kept: orientation, modes, sizes, and files that are damaged or hostile."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data.guard import Refusal
from components.data.pictures import Picture, decoded, jpeg_quality, normalise
from tests.components.data.picture_files import (
    encoded,
    grey_tiff,
    hidden_avif,
    many_scans,
    photo,
    png,
    png_chunk,
    zeros,
)

MALFORMED = Path(__file__).parents[4] / "shared" / "data" / "malformed_images.parquet"


def opened(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data))
    image.load()
    return image


def kept(body: bytes, image_size: int = 64, **limits: Any) -> Picture:
    return normalise(body, Collect(image_size=image_size, **limits))


def refusal_of(body: bytes, max_pixels: int = 10**7) -> CollectReason:
    with pytest.raises(Refusal) as refusal:
        kept(body, max_pixels=max_pixels)
    return refusal.value.reason


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF"]))
def test_the_shorter_side_is_reduced_and_never_enlarged(width: int, height: int, kind: str) -> None:
    picture = kept(encoded(photo(width, height), kind))
    assert min(picture.width, picture.height) == min(64, width, height)
    assert abs(picture.width / picture.height - width / height) <= 0.02 * max(width / height, 1) + 1 / picture.height
    assert (picture.original_width, picture.original_height) == (width, height)
    assert opened(picture).size == (picture.width, picture.height) and opened(picture).mode == "RGB"


def test_small_and_lossless_pictures_are_kept_without_loss_and_photographs_as_jpeg() -> None:
    small = photo(40, 40)
    same = kept(encoded(small))
    assert same.ending == "png" and opened(same).tobytes() == small.tobytes()
    assert kept(encoded(photo(40, 40), "JPEG")).ending == "png"
    assert kept(encoded(photo(400, 300), "JPEG"), 256).ending == "jpg"
    assert kept(encoded(photo(400, 300), "PNG"), 256).ending == "png"


def test_exif_orientation_is_applied_and_metadata_goes() -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste((255, 0, 0), (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    picture = kept(encoded(image, "JPEG", exif=exif, quality=95))
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
    found = opened(kept(encoded(image))).getpixel((10, 10))
    assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), found


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    body = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert opened(kept(body)).getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("side", [4_000, 12_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    import tracemalloc

    tracemalloc.start()
    assert refusal_of(png(side, side)) is CollectReason.TOO_MANY_PIXELS
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
        kept(start + data, max_pixels=10**6)


@pytest.mark.skipif(not MALFORMED.exists(), reason=f"the shared data set {MALFORMED.name} is not here")
def test_real_malformed_files_end_as_a_picture_or_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = []
    for body in pq.read_table(MALFORMED, columns=["bytes"])["bytes"].to_pylist():
        try:
            outcomes.append(kept(body).ending)
        except Refusal as refusal:
            outcomes.append(str(refusal.reason))
    capfd.readouterr()  # libtiff writes to the terminal by itself
    assert len(outcomes) == 764 and outcomes.count("png") + outcomes.count("jpg") >= 190


# -- quality, originals, colours


def test_the_quality_of_a_jpeg_is_read_from_its_tables() -> None:
    image = photo(32, 32)
    for quality in range(1, 101):
        body = encoded(image, "JPEG", quality=quality)
        assert kept(body).quality == quality
    flat = jpeg_quality((5,) * 64)  # no standard table: near to one that loses as little
    assert 88 <= flat <= 97


@pytest.mark.parametrize(
    ("kind", "options", "quality"),
    [
        ("PNG", {}, 100), ("GIF", {}, 100), ("BMP", {}, 100), ("TIFF", {}, 100),
        ("TIFF", {"compression": "jpeg"}, None), ("WEBP", {"lossless": True}, 100), ("WEBP", {}, None),
        ("WEBP", {"exif": b"Exif\0\0MM\0*", "lossless": True}, 100), ("AVIF", {}, None),
    ],
)  # fmt: skip
def test_lossless_sources_have_quality_100_and_stay_lossless(kind: str, options: Any, quality: int | None) -> None:
    picture = kept(encoded(photo(200, 150), kind, **options), 100)
    assert picture.quality == quality
    assert picture.ending == ("png" if quality == 100 else "jpg")


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("JPEG", "jpg"), ("PNG", "png"), ("GIF", "gif"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif"),
     ("AVIF", "avif")],
)  # fmt: skip
def test_originals_are_kept_as_they_came_and_turned_when_decoded(kind: str, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    options = {} if kind in ("GIF", "BMP") else {"exif": exif}
    body = encoded(photo(300, 200), kind, **options)
    picture = kept(body, encode="original")
    assert picture.data == body and picture.ending == ending
    size = (200, 300) if options else (300, 200)
    assert (picture.width, picture.height) == (picture.original_width, picture.original_height) == size
    image = decoded(picture.data, 10**6)
    assert image.size == size and image.mode == "RGB"
    upright = photo(300, 200).transpose(Image.Transpose.ROTATE_90) if options else photo(300, 200)
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(upright, dtype=int))
    assert difference.mean() < (12 if kind == "GIF" else 5)
    with pytest.raises(Refusal) as refusal:
        kept(body[: len(body) * 2 // 3], encode="original")
    assert refusal.value.reason is CollectReason.TRUNCATED


def test_original_bytes_are_not_decoded_but_their_header_counts() -> None:
    damaged = bytearray(encoded(photo(300, 200), "PNG"))
    damaged[5000:5100] = bytes(100)
    assert kept(bytes(damaged), encode="original").data == damaged
    assert refusal_of(bytes(damaged)) is CollectReason.TRUNCATED
    with pytest.raises(Refusal) as refusal:
        decoded(bytes(damaged), 10**6)
    assert refusal.value.reason is CollectReason.TRUNCATED
    with pytest.raises(Refusal) as refusal:
        kept(encoded(photo(300, 200)), encode="original", max_pixels=59_999)
    assert refusal.value.reason is CollectReason.TOO_MANY_PIXELS


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_as_it_is_seen(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    image = photo(90, 60)
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = encoded(image, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(body))).convert("RGB")
    picture = kept(body, 60)
    assert (picture.original_width, picture.original_height) == expected.size == (picture.width, picture.height)
    assert opened(picture).tobytes() == expected.tobytes()


def profile_of(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()  # type: ignore[arg-type]


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and green exchanged: a colour meant as red is stored as green."""
    data = bytearray(profile_of("sRGB"))
    at = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    data[red + 4 : red + 12], data[green + 4 : green + 12] = data[green + 4 : green + 12], data[red + 4 : red + 12]
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_icc_profile_is_applied(mode: str) -> None:
    image = Image.new(mode, (20, 20), (0, 255, 0))
    found = decoded(encoded(image, "PNG", icc_profile=swapped_profile()), 10**6).getpixel((5, 5))
    assert all(abs(a - b) <= 3 for a, b in zip(found, (255, 0, 0), strict=True)), found


def test_srgb_itself_changes_nothing_and_broken_or_foreign_profiles_are_ignored() -> None:
    image = photo(20, 20)
    for profile in (
        profile_of("sRGB"),
        b"",
        b"junk" * 99,
        profile_of("sRGB")[:300],
        profile_of("LAB"),
        bytes(9_000_000),
    ):
        assert decoded(encoded(image, "TIFF", icc_profile=profile), 10**6).tobytes() == image.tobytes()
    grey = Image.new("L", (20, 20), 77)
    assert decoded(encoded(grey, "PNG", icc_profile=profile_of("sRGB")), 10**6).getpixel((1, 1)) == (77, 77, 77)


def test_cmyk_is_read_as_adobe_writes_it_and_as_others_do() -> None:
    ink = Image.new("CMYK", (40, 40), (0, 255, 255, 0))  # red
    body = encoded(ink, "JPEG", quality=100)
    assert b"Adobe" in body  # Pillow writes as Adobe does, inverted
    assert decoded(body, 10**6).getpixel((5, 5))[0] > 240 > 20 > decoded(body, 10**6).getpixel((5, 5))[1]
    marker = body.index(b"\xff\xee")
    plain = body[:marker] + body[marker + 2 + int.from_bytes(body[marker + 2 : marker + 4], "big") :]
    red, green, blue = decoded(plain, 10**6).getpixel((5, 5))
    assert (red < 20, green < 20, blue < 20) == (True, True, True), "the same numbers, not inverted: cyan and black"
    assert kept(encoded(photo(400, 300).convert("CMYK"), "JPEG"), 100).width == 133
    assert decoded(encoded(ink, "TIFF"), 10**6).getpixel((5, 5)) == (255, 0, 0)


def test_sixteen_bits_floats_and_transparent_palettes() -> None:
    deep = np.full((20, 20), 0xC0FF, dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert decoded(encoded(Image.fromarray(deep), kind), 10**6).getpixel((1, 1)) == (0xC0,) * 3
    rgb16 = png(4, 4, bits=16, pixels=(b"\0" + b"\xc0\xff\x10\xff\x20\xff" * 4) * 4, colour=2)
    assert decoded(rgb16, 100).getpixel((1, 1)) == (0xC0, 0x10, 0x20)
    floats = np.linspace(-5, 20, 400, dtype=np.float32).reshape(20, 20)
    floats[0, 1] = np.nan
    image = decoded(encoded(Image.fromarray(floats), "TIFF"), 10**6)
    assert image.getpixel((0, 0)) == (0, 0, 0) and image.getpixel((19, 19)) == (255, 255, 255)
    floats[:] = np.where(floats > 8, np.float32(3e38), np.float32(-3e38))  # too far apart for 32 bits
    assert decoded(encoded(Image.fromarray(floats), "TIFF"), 10**6).mode == "RGB"
    clear = Image.new("P", (20, 20), 1)
    clear.putpalette([255, 0, 0, 0, 255, 0])
    assert decoded(encoded(clear, "GIF", transparency=1), 10**6).getpixel((5, 5)) == (255, 255, 255)
    assert decoded(encoded(clear, "PNG", transparency=0), 10**6).getpixel((5, 5)) == (0, 255, 0)


def test_a_photograph_is_reduced_as_a_full_decode_and_filter_would() -> None:
    for width, height in ((1024, 768), (700, 900), (2000, 1100)):
        body = encoded(photo(width, height), "JPEG", quality=92)
        share = 256 / min(width, height)
        size = (max(256, round(width * share)), max(256, round(height * share)))
        exact = np.asarray(Image.open(io.BytesIO(body)).resize(size, Image.Resampling.LANCZOS), dtype=float)
        found = np.asarray(opened(kept(body, 256, jpeg_quality=100)), dtype=float)
        assert found.shape == exact.shape and ((found - exact) ** 2).mean() < 6  # 40 dB


def test_fine_stripes_do_not_alias() -> None:
    """Stripes of one pixel are the worst case: half the amplitude, 127, would be left without a filter; a decode at a
    reduced scale goes block by block and leaves a little."""
    stripes = np.zeros((960, 960, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    for kind in ("JPEG", "PNG"):
        for side in (101, 256, 479):
            pixels = np.asarray(opened(kept(encoded(Image.fromarray(stripes), kind, quality=95), side)))
            assert pixels[:, 8:-8].std() < (16 if kind == "JPEG" else 4), (kind, side)


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\xff\x0a" + bytes(50), "JPEG XL"),
     (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"%PDF-1.7", "PDF"), (b"<html><img>", "HTML"), (b"", "empty")],
)  # fmt: skip
def test_what_is_not_read_is_named(body: bytes, words: str) -> None:
    with pytest.raises(Refusal, match=words) as refusal:
        kept(body)
    assert refusal.value.reason is CollectReason.NOT_AN_IMAGE


# -- damage and bombs

VALID = [
    encoded(photo(90, 70), "JPEG"), encoded(photo(90, 70), "JPEG", progressive=True, icc_profile=swapped_profile()),
    encoded(photo(40, 30)), encoded(photo(40, 30), "PNG", icc_profile=swapped_profile()), encoded(photo(40, 30), "GIF"),
    encoded(photo(40, 30), "WEBP", icc_profile=swapped_profile()), encoded(photo(40, 30), "WEBP", lossless=True),
    encoded(photo(40, 30), "BMP"), encoded(photo(40, 30), "TIFF", compression="tiff_deflate"), grey_tiff(20, 3),
    encoded(photo(40, 30), "AVIF", speed=10), encoded(photo(40, 30).convert("CMYK"), "JPEG"),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_pictures_raise_nothing_but_a_refusal(data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(0, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    for encode in ("resize", "original"):
        with contextlib.suppress(Refusal):
            picture = kept(bytes(body[:end]), 16, encode=encode, max_pixels=10**5)
            if encode == "resize":
                assert min(opened(picture).size) <= 16
    with contextlib.suppress(Refusal):
        assert decoded(bytes(body[:end]), 10**5).mode == "RGB"


def bombs() -> dict[str, tuple[bytes, CollectReason | None]]:
    return {
        "pixels": (png(60_000, 60_000), CollectReason.TOO_MANY_PIXELS),
        "text": (png(10, 10, png_chunk(b"zTXt", b"k\0\0" + zeros(300 << 20))), CollectReason.TRUNCATED),
        "international text": (
            png(10, 10, png_chunk(b"iTXt", b"k\0\1\0\0\0" + zeros(300 << 20))),
            CollectReason.TRUNCATED,
        ),
        "profile": (png(10, 10, png_chunk(b"iCCP", b"k\0\0" + zeros(300 << 20))), CollectReason.TRUNCATED),
        "tile": (grey_tiff(64, tile=30_000), CollectReason.TOO_MANY_PIXELS),
        "scans": (many_scans(2000, 2000, 5000), CollectReason.TOO_MANY_PIXELS),
        "hidden frame": (hidden_avif(64, 4000), CollectReason.TOO_MANY_PIXELS),
        "pages": (grey_tiff(64, pages=50_000), None),
    }


def test_bombs_cost_neither_memory_nor_time(tmp_path: Path) -> None:
    made = bombs()
    for name, (body, _) in made.items():
        (tmp_path / name).write_bytes(body)
    program = """
import json, resource, sys, time
from pathlib import Path
from components.contracts.recipe import Collect
from components.data.guard import Refusal
from components.data.pictures import normalise
from tests.components.data.picture_files import encoded, photo
for kind in ("JPEG", "PNG", "TIFF", "AVIF"):
    normalise(encoded(photo(99, 99), kind), Collect())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
found = {}
for file in sorted(Path(sys.argv[1]).iterdir()):
    body, before, start = file.read_bytes(), peak(), time.monotonic()
    try:
        normalise(body, Collect(max_pixels=10_000_000))
        reason = None
    except Refusal as refusal:
        reason = str(refusal.reason)
    found[file.name] = [reason, peak() - before, time.monotonic() - start]
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3], capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: reason for name, (reason, _, _) in found.items()} == {n: r and str(r) for n, (_, r) in made.items()}
    assert max(grown for _, grown, _ in found.values()) < 60, found  # MiB
    assert max(seconds for _, _, seconds in found.values()) < 5, found
