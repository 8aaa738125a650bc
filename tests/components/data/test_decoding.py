"""Decoding by other ways than Pillow's, and in strips: the same pixels, in less memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from components.contracts.records import CollectReason
from components.data import colour, decoding
from components.data.colour import plain, srgb
from components.data.guard import Refusal
from components.data.webp import first_frame
from tests.components.data.picture_files import encoded, photo
from tests.components.data.test_pictures import swapped_profile


def pillows(body: bytes, side: int | None) -> Image.Image:
    """What Pillow alone makes of it, in one piece."""
    image = Image.open(io.BytesIO(body))
    image.load()
    profile = image.info.get("icc_profile")
    image = plain(image)
    if side is not None and min(image.size) > side:
        share = side / min(image.size)
        target = (max(side, round(image.width * share)), max(side, round(image.height * share)))
        image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return srgb(image, profile)


def ours(body: bytes, side: int | None) -> Image.Image:
    found = decoding.upright(decoding.opened(body, 10**7), side)
    assert isinstance(found, Image.Image)
    return found


def glass(width: int, height: int) -> Image.Image:
    """A picture of every transparency."""
    image = photo(width, height).convert("RGBA")
    image.putalpha(Image.fromarray((np.add.outer(np.arange(height), np.arange(width)) % 256).astype(np.uint8)))
    return image


def animation(first: Image.Image, place: tuple[int, int], canvas: tuple[int, int], flags: int = 0x12) -> bytes:
    """An animated WebP whose first frame covers part of the canvas, and whose second is white."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)

    def frame(image: Image.Image, at: tuple[int, int]) -> bytes:
        still = encoded(image, "WEBP", lossless=True)
        parts = still[12:] if still[12:16] != b"VP8X" else still[30:]
        numbers = (at[0] // 2, at[1] // 2, image.width - 1, image.height - 1, 100)
        return chunk(b"ANMF", b"".join(n.to_bytes(3, "little") for n in numbers) + b"\0" + parts)

    size = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
    inner = b"WEBP" + chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size) + chunk(b"ANIM", bytes(6))
    inner += frame(first, place) + frame(Image.new("RGBA", canvas, "white"), (0, 0))
    return b"RIFF" + len(inner).to_bytes(4, "little") + inner


def announced() -> bytes:
    """An opaque lossy picture whose header says that it has transparency."""
    body = bytearray(encoded(photo(121, 93), "WEBP", exif=b"Exif\0\0MM\0*"))
    assert body[12:16] == b"VP8X"
    body[20] |= 0x10
    return bytes(body)


SOURCES: dict[str, bytes] = {
    "lossy": encoded(photo(121, 93), "WEBP"),
    "lossless": encoded(photo(121, 93), "WEBP", lossless=True),
    "lossy with alpha": encoded(glass(121, 93), "WEBP"),
    "lossless with alpha": encoded(glass(121, 93), "WEBP", lossless=True, exact=True),
    "profile": encoded(glass(121, 93), "WEBP", icc_profile=swapped_profile()),
    "animation": encoded(glass(121, 93), "WEBP", save_all=True, append_images=[photo(121, 93).convert("RGBA")]),
    "animation, lossy": encoded(photo(121, 93), "WEBP", save_all=True, append_images=[photo(121, 93).rotate(90)]),
    "small first frame": animation(glass(41, 33), (20, 16), (121, 93)),
    "small first frame, opaque": animation(photo(41, 33).convert("RGBA"), (20, 16), (121, 93), 0x02),
    "alpha announced and not there": announced(),
}


@pytest.mark.parametrize("side", [None, 64, 20])
@pytest.mark.parametrize("name", SOURCES)
def test_webp_comes_out_as_pillow_reads_it(name: str, side: int | None) -> None:
    assert ours(SOURCES[name], side).tobytes() == pillows(SOURCES[name], side).tobytes()


def floats(last: float = 200.0) -> Image.Image:
    values = np.random.default_rng(3).normal(0, 50, (93, 121)).astype(np.float32)
    values[0, :2], values[-1, -1] = (np.nan, -np.inf), last
    return Image.fromarray(values)


def keyed() -> bytes:
    image = photo(121, 93)
    image.paste((1, 2, 3), (10, 10, 60, 50))
    return encoded(image, "PNG", transparency=(1, 2, 3))


LARGE: dict[str, bytes] = {
    "alpha": encoded(glass(121, 93)),
    "alpha and profile": encoded(glass(121, 93), icc_profile=swapped_profile()),
    "colour key": keyed(),
    "floats": encoded(floats(), "TIFF"),
    "integers": encoded(Image.fromarray(np.arange(-40, 93 * 121 - 40, dtype=np.int32).reshape(93, 121)), "TIFF"),
    "16 bits": encoded(Image.fromarray(np.arange(93 * 121, dtype=np.uint16).reshape(93, 121) * 5), "PNG"),
}


@pytest.mark.parametrize("side", [None, 64, 20])
@pytest.mark.parametrize("name", LARGE)
def test_strips_change_no_pixel(name: str, side: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ours(LARGE[name], side).tobytes()
    monkeypatch.setattr(colour, "_LARGE", 1)
    monkeypatch.setattr(colour, "_STRIP", 121 * 7 + 5)
    assert ours(LARGE[name], side).tobytes() == whole
    assert len(set(whole)) > 20, "the picture shows something"


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_a_reduced_jpeg_is_the_same_file_with_and_without_a_profile_that_says_nothing(subsampling: Any) -> None:
    from components.contracts.recipe import Collect
    from components.data.pictures import normalise

    plain_sRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 3
    image, limits = photo(700, 500), Collect(image_size=256, jpeg_subsampling=subsampling)
    body = encoded(image, "JPEG", quality=90)
    quick = normalise(body, limits)
    pixels = decoding.upright(decoding.opened(body, 10**7), 256)
    assert isinstance(pixels, np.ndarray), "no image is made on the way"
    out = io.BytesIO()
    Image.fromarray(pixels[..., ::-1]).save(out, "JPEG", quality=95, subsampling=subsampling)
    assert quick.data == out.getvalue(), "Pillow would write the same file"
    assert normalise(encoded(image, "JPEG", quality=90, icc_profile=plain_sRGB), limits).data == quick.data
    turned = Image.open(io.BytesIO(normalise(encoded(image, "JPEG", quality=90, exif=exif), limits).data))
    back = np.asarray(turned.transpose(Image.Transpose.ROTATE_180), dtype=int)
    assert np.abs(back - np.asarray(Image.open(io.BytesIO(quick.data)), dtype=int)).mean() < 2


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_animations_end_as_a_picture_or_a_refusal(data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from([SOURCES["small first frame"], SOURCES["animation"]])))
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(12, 120) | st.integers(12, len(body) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(20, len(body)) | st.just(len(body)))
    try:
        assert decoding.upright(decoding.opened(bytes(body[:end]), 10**5), 16).mode == "RGB"  # type: ignore[union-attr]
    except Refusal as refusal:
        assert refusal.reason in (CollectReason.TRUNCATED, CollectReason.TOO_MANY_PIXELS)


def test_a_frame_that_hides_a_larger_picture_is_not_decoded() -> None:
    body = bytearray(animation(photo(400, 300).convert("RGBA"), (0, 0), (400, 300)))
    at = body.index(b"ANMF") + 8
    body[at + 6 : at + 12] = (39).to_bytes(3, "little") + (29).to_bytes(3, "little")
    frame = first_frame(bytes(body), (400, 300), True)
    assert frame is not None and frame.size == (40, 30)
    assert cv2.imdecode(np.frombuffer(frame.body, np.uint8), cv2.IMREAD_UNCHANGED) is None
    with pytest.raises(ValueError, match="over the canvas"):
        first_frame(bytes(body), (30, 30), True)


_PEAK = """
import json, os, sys
from pathlib import Path
from components.contracts.recipe import Collect
from components.data.pictures import normalise
from tests.components.data.picture_files import encoded, photo
for kind in ("JPEG", "PNG", "TIFF", "AVIF", "WEBP"):
    normalise(encoded(photo(300, 300), kind), Collect())
def memory(name):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
found = {}
for file in sorted(Path(sys.argv[1]).iterdir()):
    ours, theirs = os.pipe()
    if os.fork() == 0:  # in memory that no file before has used
        body = file.read_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
        before = memory("VmRSS")
        normalise(body, Collect())
        os.write(theirs, str(memory("VmHWM") - before).encode())
        os._exit(0)
    os.close(theirs)
    os.wait()
    found[file.name] = int(os.read(ours, 99))
print(json.dumps(found))
"""


def test_what_each_form_takes_of_memory(tmp_path: Path) -> None:
    """Bytes a pixel. Up to 7 are within the pixel cap as RGB and 200 MiB at the default 50 million pixels."""
    width, height = 4000, 2500
    ramp = np.add.outer(np.arange(height), np.arange(width)) // 32
    grey = Image.fromarray((ramp % 256).astype(np.uint8))
    rgb = Image.merge("RGB", [grey] * 3)
    rgba = Image.merge("RGBA", [grey] * 4)
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "webp": (rgb, "WEBP", {"method": 0}),
        "webp lossless": (rgb, "WEBP", {"lossless": True, "method": 0, "quality": 0}),
        "webp alpha": (rgba, "WEBP", {"method": 0, "alpha_quality": 50}),
        "webp film": (rgb, "WEBP", {"method": 0, "save_all": True, "append_images": [Image.new("RGB", rgb.size)]}),
        "avif": (rgb, "AVIF", {"speed": 10}),
        "avif alpha": (rgba, "AVIF", {"speed": 10}),
        "png": (rgb, "PNG", {"compress_level": 1}),
        "png alpha": (rgba, "PNG", {"compress_level": 1}),
        "png key": (rgb, "PNG", {"compress_level": 1, "transparency": (1, 1, 1)}),
        "png 16": (Image.fromarray(ramp.astype(np.uint16)), "PNG", {"compress_level": 1}),
        "tiff float": (Image.fromarray(ramp.astype(np.float32)), "TIFF", {}),
        "jpeg": (rgb, "JPEG", {}),
        "jpeg progressive": (rgb, "JPEG", {"progressive": True}),
        "gif": (grey, "GIF", {}),
    }
    for name, (image, kind, options) in files.items():
        (tmp_path / name).write_bytes(encoded(image, kind, **options))
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path)], cwd=Path(__file__).parents[3], capture_output=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    peaks = {name: peak / (width * height) for name, peak in json.loads(done.stdout).items()}
    assert set(peaks) == set(files)
    assert peaks["png"] > 3.5, f"the measure sees what is held: {peaks}"
    more = {"avif": 10.5, "avif alpha": 13, "webp lossless": 8, "webp alpha": 9, "webp film": 9}  # as docs/data.md says
    assert not {name: peak for name, peak in peaks.items() if peak > more.get(name, 7)}
