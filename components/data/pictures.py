"""From the bytes that a source gave to a picture as it is kept, by one stated rule.

The header is read first: a picture of more pixels than allowed is refused before any of it is decoded. Of
animations and of files with several pages the first picture is taken; EXIF orientation is applied; colours go to
sRGB by the embedded ICC profile; palette, grey, 16-bit and CMYK pictures become 8-bit RGB; alpha is laid over
white. The shorter side is reduced to ``image_size`` with an antialiasing filter (a JPEG is decoded at a reduced
scale, in steps of an eighth), never enlarged. A picture is kept as PNG when its source is lossless or its
shorter side is at most :data:`SMALL` pixels, where JPEG's loss would show most; otherwise as JPEG of
``jpeg_quality`` and ``jpeg_subsampling``. No metadata is kept. With ``encode: original`` the bytes are kept as
they came, their header and structure checked, and :func:`decoded` applies the rule when they are read.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data import headers
from components.data.decoding import Box, Opened, Pixels, opened, upright
from components.data.guard import Refusal

SMALL = 64
_FRAGMENT = re.compile(r"#xywh=(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})$")
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


def box_of(url: str) -> Box | None:
    """What a URL's media fragment says is meant of the picture: ``#xywh=x,y,width,height`` in pixels (W3C Media
    Fragments URI 1.0, sec. 4.2.2). None where there is none."""
    found = _FRAGMENT.search(url)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]), int(found[4]))


def normalise(body: bytes, limits: Collect, box: Box | None = None) -> Picture:
    """The picture in ``body`` as it is kept under ``image_size``, ``max_pixels``, ``encode`` and ``jpeg_quality``.

    Args:
        box: the part of it that is kept, in pixels of the file, cut before it is reduced; what reaches over the
            border is left out, and one that lies beyond it means the whole picture. Not with ``encode: original``.

    Raises:
        Refusal: ``NOT_AN_IMAGE``, ``TOO_MANY_PIXELS`` or ``TRUNCATED``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own limit and its remarks on odd metadata
        source = opened(body, limits.max_pixels)
        if limits.encode == "original":
            if (lacks := headers.missing(body, source.kind)) is not None:
                raise Refusal(CollectReason.TRUNCATED, f"the file ends without {lacks}")
            width, height = source.size
            return Picture(body, headers.ENDINGS[source.kind], width, height, width, height, _quality(source))
        pixels = upright(source, limits.image_size, box)
    quality = _quality(source)
    if isinstance(pixels, np.ndarray):
        height, width = pixels.shape[:2]
    else:
        width, height = pixels.size
    if (quality == 100 and source.kind != "JPEG") or min(width, height) <= SMALL:
        data, ending = _png(pixels), "png"
    else:
        data, ending = _jpeg(pixels, limits), "jpg"
    return Picture(data, ending, width, height, source.size[0], source.size[1], quality)


def decoded(data: bytes, max_pixels: int) -> Image.Image:
    """The picture in ``data`` in 8-bit sRGB and upright, at its full size.

    Raises:
        Refusal: as :func:`normalise`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = upright(opened(data, max_pixels), None)
    assert isinstance(image, Image.Image), "arrays are of reduced pictures"
    return image


def _png(pixels: Image.Image | Pixels) -> bytes:
    image = Image.fromarray(pixels[..., ::-1]) if isinstance(pixels, np.ndarray) else pixels
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _jpeg(pixels: Image.Image | Pixels, limits: Collect) -> bytes:
    """The same bytes from either form, as both encoders are libjpeg-turbo."""
    full, quality = limits.jpeg_subsampling == "4:4:4", limits.jpeg_quality
    if isinstance(pixels, np.ndarray):
        import cv2

        factor = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
        done, data = cv2.imencode(".jpg", pixels, options)
        assert done, "an array of three channels can be encoded"
        return bytes(data)
    out = io.BytesIO()
    pixels.save(out, "JPEG", quality=quality, subsampling=0 if full else 2)
    return out.getvalue()


def _quality(source: Opened) -> int | None:
    if source.kind == "JPEG":
        tables: Any = source.image.quantization
        return jpeg_quality(tuple(tables[min(tables)])) if tables else None
    lossy = {"WEBP": not headers.webp_is_lossless(source.body), "AVIF": True,
             "TIFF": source.image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")}  # fmt: skip
    return None if lossy.get(source.kind, False) else 100


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
