"""From the bytes that a source gave to a picture as it is kept, by one stated rule.

The header is read first: a picture of more pixels than allowed is refused before any of it is decoded. Of
animations and of files with several pages the first picture is taken; EXIF orientation is applied; colours go to
sRGB by the embedded ICC profile; palette, grey, 16-bit and CMYK pictures become 8-bit RGB; alpha is laid over
white. The shorter side is reduced to ``image_size`` with an antialiasing filter (a JPEG is decoded at a reduced
scale, in steps of an eighth), never enlarged. A picture is kept as PNG when its source is lossless or its
shorter side is at most :data:`SMALL` pixels, where JPEG's loss would show most; otherwise as JPEG of
``jpeg_quality`` without chroma subsampling. No metadata is kept. With ``encode: original`` the bytes are kept as
they came, their header and structure checked, and :func:`decoded` applies the rule when they are read.
"""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, Image

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data import headers
from components.data.colour import plain, srgb
from components.data.guard import Refusal

SMALL = 64
_PASSES = 20  # over max_pixels: what the scans of a progressive JPEG may add up to; usual ones have ten
_NEARLY = 1.25  # reduced further by at most this after the scaled decode, a picture needs no filter against aliasing
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Table K.1 of ITU-T T.81, row by row: the luminance table that nearly every encoder scales by its quality
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)


@dataclass(frozen=True)
class Picture:
    """A kept picture: the file, its ending, its size, and the size it had at the source, in pixels as seen."""

    data: bytes
    ending: str  # "png" | "jpg", and any of `headers.ENDINGS` for originals
    width: int
    height: int
    original_width: int
    original_height: int
    quality: int | None  # of the source: 100 where lossless, else of its JPEG tables, 1..100; None if unknown


@dataclass(frozen=True)
class _Opened:
    image: Image.Image  # not loaded
    kind: str
    body: bytes
    orientation: int  # EXIF's, 1..8; 1 where the decoder applies it by itself
    size: tuple[int, int]  # as seen

    @property
    def quality(self) -> int | None:
        if self.kind == "JPEG":
            tables = self.image.quantization
            return jpeg_quality(tuple(tables[min(tables)])) if tables else None
        lossy = {"WEBP": not headers.webp_is_lossless(self.body), "AVIF": True,
                 "TIFF": self.image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")}  # fmt: skip
        return None if lossy.get(self.kind, False) else 100


def normalise(body: bytes, limits: Collect) -> Picture:
    """The picture in ``body`` as it is kept under ``image_size``, ``max_pixels``, ``encode`` and ``jpeg_quality``.

    Raises:
        Refusal: ``NOT_AN_IMAGE``, ``TOO_MANY_PIXELS`` or ``TRUNCATED``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own limit and its remarks on odd metadata
        opened = _opened(body, limits.max_pixels)
        if limits.encode == "original":
            if (lacks := headers.missing(body, opened.kind)) is not None:
                raise Refusal(CollectReason.TRUNCATED, f"the file ends without {lacks}")
            width, height = opened.size
            return Picture(body, headers.ENDINGS[opened.kind], width, height, width, height, opened.quality)
        rgb = _rgb(opened, limits.image_size)
        quality = opened.quality
    out = io.BytesIO()
    if (quality == 100 and opened.kind != "JPEG") or min(rgb.size) <= SMALL:
        ending = "png"
        rgb.save(out, "PNG", compress_level=3)
    else:
        ending = "jpg"
        rgb.save(out, "JPEG", quality=limits.jpeg_quality, subsampling=0)
    return Picture(out.getvalue(), ending, rgb.width, rgb.height, opened.size[0], opened.size[1], quality)


def decoded(data: bytes, max_pixels: int) -> Image.Image:
    """The picture in ``data`` in 8-bit sRGB and upright, at its full size.

    Raises:
        Refusal: as :func:`normalise`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _rgb(_opened(data, max_pixels), None)


@functools.lru_cache(maxsize=256)
def jpeg_quality(table: tuple[int, ...]) -> int:
    """The quality, 1..100, at which libjpeg's luminance table is nearest to this one of 64 values, row by row."""
    distance = np.abs(_tables() - np.asarray(table, dtype=np.int64)[None]).sum(axis=1)
    return 100 - int(distance[::-1].argmin())  # of equals the highest


@functools.lru_cache(maxsize=1)
def _tables() -> npt.NDArray[np.int64]:
    """libjpeg's ``jpeg_quality_scaling`` for every quality: (100, 64)."""
    base = np.array(_LUMINANCE.split(), dtype=np.int64)
    scale = np.array([5000 // q if q < 50 else 200 - 2 * q for q in range(1, 101)])
    tables: npt.NDArray[np.int64] = np.clip((base[None] * scale[:, None] + 50) // 100, 1, 255)
    return tables


def _opened(body: bytes, max_pixels: int) -> _Opened:
    kind = headers.kind_of(body)
    if kind not in headers.ENDINGS:
        raise Refusal(CollectReason.NOT_AN_IMAGE, f"no picture format that is read: {kind}")
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads are the stages' business
    try:
        if kind == "TIFF":
            body = headers.first_page(body)
        image = Image.open(io.BytesIO(body), formats=[kind])
        # of a TIFF the size is as seen and the decoder turns it
        orientation = 1 if kind == "TIFF" else _orientation(image.info.get("exif"))
        pixels = headers.most_pixels(body, kind, image.width * image.height)
    except Image.DecompressionBombError as error:
        raise Refusal(CollectReason.TOO_MANY_PIXELS, "more pixels than any limit allows") from error
    except Exception as error:  # Pillow's readers raise nearly everything on damaged data
        raise Refusal(CollectReason.TRUNCATED, "the picture's header ends early or is damaged") from error
    if pixels > max_pixels:
        raise Refusal(
            CollectReason.TOO_MANY_PIXELS,
            f"{image.width}x{image.height} pixels announced, {pixels} at most in one piece; {max_pixels} are decoded",
        )
    if kind == "JPEG" and headers.scans(body, _PASSES * max_pixels / max(pixels, 1)) * pixels > _PASSES * max_pixels:
        raise Refusal(
            CollectReason.TOO_MANY_PIXELS, f"{headers.scans(body)} scans over {image.width}x{image.height} pixels"
        )
    size = (image.height, image.width) if orientation >= 5 else image.size
    return _Opened(image, kind, body, orientation, size)


def _orientation(exif: bytes | None) -> int:
    if not exif:
        return 1
    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get(0x0112, 1)
    except Exception:  # Pillow's reader raises nearly everything on damaged data: then nothing is turned
        return 1
    return value if value in _TURNS else 1


def _rgb(opened: _Opened, side: int | None) -> Image.Image:
    """Upright, in sRGB, the shorter side at most ``side`` (None: at full size)."""
    image, target = opened.image, None
    if side is not None and min(image.size) > side:
        share = side / min(image.size)
        target = (max(side, round(image.width * share)), max(side, round(image.height * share)))
    profile = image.info.get("icc_profile")
    try:
        if target is not None and opened.kind == "JPEG":
            image = _reduced(opened, target)
        image.load()
        image = plain(image)
        if target is not None and image.size != target:
            image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
        if opened.orientation != 1:
            image = image.transpose(_TURNS[opened.orientation])
        return srgb(image, profile)
    except MemoryError as error:
        raise Refusal(CollectReason.TOO_MANY_PIXELS, "there is not enough memory for its pixels") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged data
        raise Refusal(CollectReason.TRUNCATED, "the picture's data ends early or is damaged") from error


def _reduced(opened: _Opened, target: tuple[int, int]) -> Image.Image:
    """The JPEG decoded at the least scale that is not below ``target`` (width, height), or ``target`` itself."""
    import simplejpeg  # type: ignore[import-untyped]

    image, (width, height) = opened.image, target
    if image.mode in ("RGB", "L"):
        try:
            pixels: npt.NDArray[Any] = simplejpeg.decode_jpeg(
                opened.body, "RGB" if image.mode == "RGB" else "GRAY", min_height=height, min_width=width
            )
        except ValueError:
            pass  # it stops at every oddity; Pillow below bears those that leave a picture
        else:
            if pixels.shape[0] <= _NEARLY * height and pixels.shape[1] <= _NEARLY * width:
                pixels = _cubic(pixels, target)
            return Image.fromarray(pixels if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels.squeeze())
    image.draft(image.mode, target)
    return image


def _cubic(pixels: npt.NDArray[Any], target: tuple[int, int]) -> npt.NDArray[Any]:
    """Bicubic interpolation, ten times as fast as Pillow's, which filters too."""
    import cv2

    cv2.setNumThreads(1)  # threads are the stages' business
    return cv2.resize(pixels, target, interpolation=cv2.INTER_CUBIC)
