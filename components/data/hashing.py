"""What is measured of every collected picture, in one pass over its pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

THUMB = 16  # side of the thumbnails that near-duplicates are confirmed by
_ODD = np.where(np.arange(8) % 2, -1.0, 1.0).astype(np.float32)  # mirrors a picture in the frequency domain

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Measurements of one picture.

    ``phash`` and ``phash_mirror`` are 64-bit perceptual hashes of the picture and of its mirror image;
    ``thumb`` is 16x16 RGB, ``pixels`` the square picture of the dataset, both uint8, row major;
    ``grey_std`` is the standard deviation of the grey values, 0..127.5; ``pixel_sha256`` is of all RGB pixels.
    """

    width: int
    height: int
    grey_std: float
    pixel_sha256: str
    phash: int
    phash_mirror: int
    thumb: bytes
    pixels: bytes


def score(image: Image.Image, side: int) -> Scores:
    """Measure an RGB picture and cut it to the ``side`` x ``side`` pixels of the dataset.

    The picture is cropped to its centre square and resized with an antialiasing filter.
    """
    grey = image.convert("L")
    plain, mirrored = phash(grey)
    square = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
    return Scores(
        width=image.width,
        height=image.height,
        grey_std=float(np.asarray(grey, dtype=np.float32).std()),
        pixel_sha256=hashlib.sha256(image.tobytes()).hexdigest(),
        phash=plain,
        phash_mirror=mirrored,
        thumb=image.resize((THUMB, THUMB), Image.Resampling.BOX).tobytes(),
        pixels=square.tobytes(),
    )


def phash(grey: Image.Image) -> tuple[int, int]:
    """64-bit perceptual hashes of a grey picture and of its mirror image.

    The sign, against their median, of the 8 x 8 lowest DCT coefficients of the picture at 32 x 32 (Zauner
    2010, "Implementation and benchmarking of perceptual image hash functions", as in imagehash). Mirroring
    negates the odd horizontal frequencies, so the second hash needs no second transform.
    """
    from scipy.fft import dctn

    small = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float32)
    low = np.asarray(dctn(small, norm="ortho"), dtype=np.float32)[:8, :8]
    return _packed(low), _packed(low * _ODD[None, :])


def _packed(coefficients: Array) -> int:
    bits = coefficients.ravel() > np.median(coefficients)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
