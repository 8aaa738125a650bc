"""From the bytes that a server sent to a picture as it is kept, by one stated rule.

The header is read first: a picture of more pixels than allowed is refused before any of it is decoded.
EXIF orientation is applied; palette, grey, 16-bit and CMYK pictures become RGB, alpha is laid over white,
of animations the first frame is taken. The shorter side is reduced to ``side`` with an antialiasing filter
(JPEG is decoded at a reduced scale where that is possible), never enlarged. A picture is kept as PNG when
its source is lossless or its shorter side is at most :data:`SMALL` pixels, where JPEG's loss would show
most; otherwise as JPEG of quality 95 without chroma subsampling. No metadata is kept.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from components.contracts.records import CollectReason
from components.data.guard import Refusal

SMALL = 64
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")  # no format that runs other programs
_LOSSLESS = frozenset({"PNG", "GIF", "BMP", "TIFF"})
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class Picture:
    """A kept picture: the file, its ending, its size, and the size it had at the source, in pixels."""

    data: bytes
    ending: str  # "png" | "jpg"
    width: int
    height: int
    original_width: int
    original_height: int


def normalise(body: bytes, side: int, max_pixels: int) -> Picture:
    """The picture in ``body`` as it is kept.

    Raises:
        Refusal: ``NOT_AN_IMAGE``, ``TOO_MANY_PIXELS`` or ``TRUNCATED``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own limit and its remarks on odd metadata
        try:
            image = _opened(body)
        except Image.DecompressionBombError as error:
            raise Refusal(CollectReason.TOO_MANY_PIXELS, "more pixels than any limit allows") from error
        original = image.size
        if image.width * image.height > max_pixels:
            raise Refusal(
                CollectReason.TOO_MANY_PIXELS,
                f"{image.width}x{image.height} pixels announced, at most {max_pixels} are decoded",
            )
        lossless = image.format in _LOSSLESS
        try:
            if image.format == "JPEG" and min(original) >= 2 * side:
                share = side / min(original)
                image.draft("RGB", (round(original[0] * share), round(original[1] * share)))
            rgb = as_rgb(ImageOps.exif_transpose(image))
            if min(rgb.size) > side:
                share = side / min(rgb.size)
                size = (max(side, round(rgb.width * share)), max(side, round(rgb.height * share)))
                rgb = rgb.resize(size, Image.Resampling.LANCZOS)
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged data
            raise Refusal(CollectReason.TRUNCATED, "the picture's data ends early or is damaged") from error
    if original[0] != original[1] and (rgb.width > rgb.height) != (original[0] > original[1]):
        original = (original[1], original[0])  # as it is seen
    out = io.BytesIO()
    if lossless or min(rgb.size) <= SMALL:
        rgb.save(out, "PNG", compress_level=3)
        ending = "png"
    else:
        rgb.save(out, "JPEG", quality=95, subsampling=0)
        ending = "jpg"
    return Picture(out.getvalue(), ending, rgb.width, rgb.height, original[0], original[1])


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB; transparency is laid over white, 16-bit grey is scaled to 8."""
    if image.mode.startswith("I") or image.mode == "F":
        low, high = (float(v) for v in image.getextrema())
        scale = 255.0 / 65535.0 if image.mode.startswith("I;16") or high > 255 or low < 0 else 1.0
        image = image.convert("F").point(lambda v: v * scale + 0.0).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        over = Image.new("RGBA", image.size, (255, 255, 255, 255))
        over.alpha_composite(image)
        image = over
    return image if image.mode == "RGB" else image.convert("RGB")


def _opened(body: bytes) -> Image.Image:
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    try:
        return Image.open(io.BytesIO(body), formats=formats)
    except Image.DecompressionBombError:
        raise
    except UnidentifiedImageError as error:
        if body.startswith(_MAGIC):  # it set out to be a picture
            raise Refusal(CollectReason.TRUNCATED, "the picture's header ends early or is damaged") from error
        raise Refusal(CollectReason.NOT_AN_IMAGE, f"no known picture format: {_looks_like(body)}") from error
    except Exception as error:
        raise Refusal(CollectReason.TRUNCATED, "the picture's header is damaged") from error


def _looks_like(body: bytes) -> str:
    start = body[:512].lstrip().lower()
    if not start:
        return "an empty body"
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
        return "an HTML page"
    return "an SVG drawing" if b"<svg" in start else "other data"
