"""Distinct originals and their near-duplicates, for a website whose truth must be exact.

Distance is measured as people would see it: the mean absolute difference of 16 x 16 RGB thumbnails
(0..255), mirrored or not. Originals are drawn again until all of them are further than
``ORIGINALS_APART`` from each other; copies are nearer than ``COPY_WITHIN`` to their original, and as far
as originals from everything else. A threshold between the two separates them exactly.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from scipy.fft import dctn
from scipy.spatial.distance import cdist

ORIGINALS_APART = 7.0
COPY_WITHIN = 3.8
THUMB = 16

_HASH_BITS = 3  # a copy stays within this many bits of a 64-bit DCT hash, flip-canonical
_HASH_DOUBT = 1.5  # coefficients this near to the median may fall on either side after another resize

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def encode(image: Image.Image, quality: int | None) -> bytes:
    """JPEG at a quality (Pillow's default subsampling), or PNG for ``None``."""
    out = io.BytesIO()
    if quality is None:
        image.save(out, "PNG", compress_level=3)
    else:
        image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def thumbnail(image: Image.Image) -> Bytes:
    """16 x 16 x 3, each pixel the mean of its area."""
    return np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX), dtype=np.uint8)


def thumb_distance(one: Bytes, other: Bytes) -> float:
    """Mean absolute difference (0..255) of two thumbnails, or of one and the other's mirror image."""
    a, b = one.astype(np.int16), other.astype(np.int16)
    return float(min(np.abs(a - b).mean(), np.abs(a - b[:, ::-1]).mean()))


def too_near(thumbs: Bytes, fresh: npt.NDArray[np.intp], settled: npt.NDArray[np.intp]) -> list[int]:
    """Which of the ``fresh`` thumbnails lie nearer than ``ORIGINALS_APART`` to a settled or earlier fresh one."""
    # the means of 4 x 4 blocks give a lower bound of the distance: only pairs below it are measured
    coarse = thumbs.reshape(len(thumbs), 4, 4, 4, 4, 3).mean(axis=(2, 4), dtype=np.float32)
    flat = coarse.reshape(len(thumbs), -1)
    mirrored = coarse[:, :, ::-1].reshape(len(thumbs), -1)
    rejected: set[int] = set()
    for start in range(0, len(fresh), 512):
        block = fresh[start : start + 512]
        others = np.concatenate([settled, fresh[: start + len(block)]])
        suspects = set()
        for features in (flat, mirrored):
            near = cdist(flat[block], features[others], "cityblock") < ORIGINALS_APART * flat.shape[1]
            suspects |= {(int(block[i]), int(others[j])) for i, j in np.argwhere(near)}
        for index, other in sorted(suspects):
            # of two fresh ones the later in line is drawn again
            earlier = other != index and other not in rejected and index not in rejected
            if earlier and thumb_distance(thumbs[index], thumbs[other]) < ORIGINALS_APART:
                both_fresh = other in block
                rejected.add(max(index, other) if both_fresh else index)
    return sorted(rejected)


def far_from_all(thumb: Bytes, thumbs: Bytes, but: int) -> bool:
    """True if the thumbnail is as far as an original from all thumbnails, that at ``but`` excepted."""
    difference = thumbs.astype(np.int16) - thumb
    distances = np.abs(difference).mean(axis=(1, 2, 3))
    mirrored = np.abs(thumbs[:, :, ::-1].astype(np.int16) - thumb).mean(axis=(1, 2, 3))
    near = np.minimum(distances, mirrored) < ORIGINALS_APART - 0.3
    near[but] = False
    return not bool(near.any())


@dataclass(frozen=True)
class CopyKind:
    """A way to make a near-duplicate: the change, the JPEG quality it is saved at (``None``: PNG)."""

    name: str
    change: Callable[[Image.Image], Image.Image]
    quality: int | None


def _resized(share: float) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        side = max(16, round(image.width * share))
        return image.resize((side, side), Image.Resampling.LANCZOS)

    return change


def _cropped(left: int, top: int, right: int, bottom: int) -> Callable[[Image.Image], Image.Image]:
    """Cuts hundredths of the side, a pixel at least, from the named borders."""

    def change(image: Image.Image) -> Image.Image:
        cut = [max(1, round(image.width * c / 100)) if c else 0 for c in (left, top, right, bottom)]
        return image.crop((cut[0], cut[1], image.width - cut[2], image.height - cut[3]))

    return change


COPY_KINDS: tuple[CopyKind, ...] = (
    CopyKind("near_reencoded", lambda image: image, 62),
    CopyKind("near_mirrored", ImageOps.mirror, 90),
    CopyKind("near_resized", _resized(0.8), 90),
    CopyKind("near_cropped", _cropped(0, 0, 2, 2), 92),
    CopyKind("near_reencoded", lambda image: image, 75),
    CopyKind("near_resized", _resized(1.25), 90),
    CopyKind("near_cropped", _cropped(2, 2, 0, 0), None),
)


def frequencies(image: Image.Image) -> npt.NDArray[np.float64]:
    """The 8 x 8 lowest DCT coefficients of the grey picture at 32 x 32, for two ways to resize: (2, 8, 8)."""
    grey = image.convert("L")
    sides = [grey.resize((32, 32), how) for how in (Image.Resampling.BOX, Image.Resampling.LANCZOS)]
    stack = np.stack([np.asarray(side, dtype=np.float64) for side in sides])
    result: npt.NDArray[np.float64] = dctn(stack, axes=(1, 2), norm="ortho")[:, :8, :8]
    return result


def doubtful_bits(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> int:
    """How many of the 64 bits of a flip-canonical DCT hash differ or could, in the worst way to resize."""
    worst = 0
    for a, b in zip(one, other, strict=True):
        best = 64
        for sign in (1, -1):
            turned = b.copy()
            turned[:, 1::2] *= sign
            da, db = a - np.median(a), turned - np.median(turned)
            unsure = (np.sign(da) != np.sign(db)) | (np.abs(da) < _HASH_DOUBT) | (np.abs(db) < _HASH_DOUBT)
            best = min(best, int(unsure.sum()))
        worst = max(worst, best)
    return worst


def make_copy(original: Image.Image, thumb: Bytes, kind: CopyKind) -> tuple[bytes, Bytes] | None:
    """The copy's file and thumbnail; ``None`` where a perceptual hash could not know the original again.

    Copies that a hash must miss (a symmetric picture has coefficients of about nothing, whose signs are
    noise) would make the truth a matter of luck, so other originals are taken for these.
    """
    before = frequencies(original)
    if doubtful_bits(before, before) > _HASH_BITS:
        return None
    data = encode(kind.change(original), kind.quality)
    image = decode(data)
    copy = thumbnail(image)
    if thumb_distance(thumb, copy) > COPY_WITHIN or doubtful_bits(before, frequencies(image)) > _HASH_BITS:
        return None
    return data, copy
