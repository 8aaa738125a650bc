"""What is measured of every collected picture, in one pass over its pixels."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image, ImageOps

from components.data.scores import THUMB

_SHARPNESS_SIDE = 256  # sharpness is measured with the shorter side reduced to this
_SCALED_SIDE = 64  # a JPEG is decoded at a scale that leaves its shorter side this long, for its hash
_FREQUENCIES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)  # the 8 lowest of a DCT of 32
_ODD = np.where(np.arange(8) % 2, -1.0, 1.0)  # mirrors a picture in the frequency domain
_ORIENTATION = 0x0112  # of EXIF

Grey = npt.NDArray[np.uint8]  # (height, width)


@dataclass(frozen=True)
class Measures:
    """Measurements of one picture; see ``SCORE_SCHEMA`` for each. ``pixels`` is uint8 RGB, row major."""

    kept_width: int
    kept_height: int
    grey_std: float
    sharpness: float
    entropy: float
    pixel_sha256: str
    phash: int
    phash_mirror: int
    thumb: bytes
    bucket: str
    pixels: bytes


def measure(image: Image.Image, size: tuple[int, int]) -> Measures:
    """Measure an upright RGB picture and cut it to ``size`` (width, height), the size of its bucket.

    It is resized with an antialiasing filter so that it just covers that size, and cropped about its centre.
    """
    grey = np.asarray(image.convert("L"))
    spread, bits = spread_and_entropy(grey)
    plain, mirrored = phash(grey)
    return Measures(
        kept_width=image.width,
        kept_height=image.height,
        grey_std=spread,
        sharpness=sharpness(grey),
        entropy=bits,
        pixel_sha256=hashlib.sha256(image.tobytes()).hexdigest(),
        phash=plain,
        phash_mirror=mirrored,
        thumb=image.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(),
        bucket=f"{size[0]}x{size[1]}",
        pixels=ImageOps.fit(image, size, Image.Resampling.LANCZOS).tobytes(),
    )


def sharpness(grey: Grey) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000): small where the picture is blurred.

    A picture whose shorter side is longer than 256 pixels is reduced to that before, so that one threshold
    serves pictures of all sizes.
    """
    height, width = grey.shape
    share = _SHARPNESS_SIDE / min(height, width)
    if share < 1:
        size = (max(1, round(width * share)), max(1, round(height * share)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var(dtype=np.float64))


def spread_and_entropy(grey: Grey) -> tuple[float, float]:
    """Standard deviation of the grey values, 0 .. 127.5, and Shannon entropy of their histogram, 0 .. 8 bits."""
    share = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64) / grey.size
    values = np.arange(256)
    mean = share @ values
    variance = share @ (values - mean) ** 2
    share = share[share > 0]
    return float(np.sqrt(variance)), max(0.0, -float(share @ np.log2(share)))


def phash(grey: Grey) -> tuple[int, int]:
    """64-bit perceptual hashes of a grey picture and of its mirror image.

    The sign, against their median, of the 8 x 8 lowest DCT coefficients of the picture at 32 x 32 (Zauner
    2010, "Implementation and benchmarking of perceptual image hash functions", as in imagehash, but reduced by
    averaging areas, which is faster and changes less under compression). Mirroring negates the odd horizontal
    frequencies, so the second hash needs no second transform. Coefficients are rounded to thousandths, so that
    those that are zero by symmetry are equal to each other.
    """
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
    low = np.round(_FREQUENCIES @ small @ _FREQUENCIES.T, 3) + 0.0
    return _packed(low), _packed(low * _ODD[None, :] + 0.0)


def phash_bytes(data: bytes, max_pixels: int = 50_000_000) -> tuple[int, int]:
    """:func:`phash` of a picture's file, upright. JPEG is decoded in grey at a reduced scale, where it is much faster.

    At a reduced scale a few hashes differ by two bits from those of the whole picture.

    Raises:
        Refusal: as :func:`components.data.pictures.decoded`.
    """
    from components.data.pictures import decoded

    grey: Grey | None = None
    if data.startswith(b"\xff\xd8\xff"):
        try:
            grey = _scaled_grey(data, max_pixels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            grey = None  # the whole rule decides what is wrong with it
    if grey is None:
        grey = np.asarray(decoded(data, max_pixels).convert("L"))
    return phash(grey)


def _scaled_grey(data: bytes, max_pixels: int) -> Grey | None:
    """Grey values of a JPEG at a reduced scale, upright; None where it takes the whole rule."""
    height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    if colour in ("CMYK", "YCCK") or width * height > max_pixels:
        return None
    side = min(_SCALED_SIDE, width, height)
    grey = simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, min_height=side, min_width=side)[:, :, 0]
    if not _may_be_turned(data):
        return np.ascontiguousarray(grey)
    orientation = Image.open(io.BytesIO(data), formats=("JPEG",)).getexif().get(_ORIENTATION, 1)
    return np.ascontiguousarray(_upright(grey, orientation), dtype=np.uint8)


def _may_be_turned(data: bytes) -> bool:
    """False if a JPEG's segments before its scan hold no EXIF."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        if data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[at : at + 1] != b"\xff"  # of an unusual order of segments another reader may make more


def _upright(grey: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """The picture as EXIF's orientation (1 .. 8) says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        grey = grey.T
    if orientation in (2, 3, 6, 7):
        grey = grey[:, ::-1]
    if orientation in (3, 4, 7, 8):
        grey = grey[::-1]
    return grey


def _packed(coefficients: npt.NDArray[np.float64]) -> int:
    flat = coefficients.ravel()
    middle = np.sort(flat)[31:33].sum() / 2
    return int.from_bytes(np.packbits(flat > middle).tobytes(), "big")
