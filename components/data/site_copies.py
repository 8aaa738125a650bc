"""Distinct originals and their near-duplicates, for a website whose truth must be exact.

Distance is measured as people would see it: the mean absolute difference of 16 x 16 RGB thumbnails
(0..255), mirrored or not. Originals are drawn again until all of them are further than
``ORIGINALS_APART`` from each other; copies are nearer than ``COPY_WITHIN`` to their original, and as far
as originals from everything else. A threshold between the two separates them exactly.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
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
Indices = npt.NDArray[np.intp]
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


class Crowd:
    """Thumbnails of pictures that must stay apart, by index."""

    def __init__(self, size: int) -> None:
        self.thumbs: Bytes = np.zeros((size, THUMB, THUMB, 3), dtype=np.uint8)
        self._coarse: Floats = np.zeros((size, 4, 4, 3), dtype=np.float32)

    def put(self, index: int, thumb: Bytes) -> None:
        self.thumbs[index] = thumb
        self._coarse[index] = thumb.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3), dtype=np.float32)

    def add(self, thumb: Bytes) -> None:
        self.thumbs = np.concatenate([self.thumbs, thumb[None]])
        self._coarse = np.concatenate([self._coarse, np.zeros((1, 4, 4, 3), dtype=np.float32)])
        self.put(len(self.thumbs) - 1, thumb)

    def too_near(self, fresh: Indices, settled: Indices) -> list[int]:
        """Which fresh ones lie nearer than ``ORIGINALS_APART`` to a settled or an earlier fresh one."""
        everyone = np.concatenate([settled, fresh])
        means = self._coarse.mean(axis=(1, 2, 3))
        everyone = everyone[np.argsort(means[everyone], kind="stable")]
        ordered = means[everyone]
        line = fresh[np.argsort(means[fresh], kind="stable")]
        suspects: set[tuple[int, int]] = set()
        for start in range(0, len(line), 128):
            # the distance of means, and of 4 x 4 blocks, is a lower bound: only pairs below it are measured
            block = line[start : start + 128]
            low, high = means[block[0]] - ORIGINALS_APART, means[block[-1]] + ORIGINALS_APART
            others = everyone[np.searchsorted(ordered, low) : np.searchsorted(ordered, high, "right")]
            for mirrored in (False, True):
                bounds = cdist(self._flat(block), self._flat(others, mirrored), "cityblock") / 48
                near = np.argwhere(bounds < ORIGINALS_APART)
                suspects |= {(int(block[i]), int(others[j])) for i, j in near}
        waiting = {int(i) for i in fresh}
        rejected: set[int] = set()
        for index, other in sorted(suspects):
            # two fresh ones come up in both orders: the later of them looks back at the earlier
            if other in waiting and (other >= index or other in rejected):
                continue
            distance = thumb_distance(self.thumbs[index], self.thumbs[other])
            if index != other and distance < ORIGINALS_APART:
                rejected.add(index)
        return sorted(rejected)

    def alone(self, thumb: Bytes, but: int) -> bool:
        """True if the thumbnail is about as far as an original from all others, that at ``but`` excepted."""
        limit = ORIGINALS_APART - 0.3
        coarse = thumb.reshape(1, 4, 4, 4, 4, 3).mean(axis=(2, 4), dtype=np.float32)
        flat = self._coarse.reshape(len(self._coarse), -1)
        for probe in (coarse, coarse[:, :, ::-1]):
            near = np.flatnonzero(cdist(probe.reshape(1, -1), flat, "cityblock")[0] < limit * 48)
            if any(i != but and thumb_distance(thumb, self.thumbs[i]) < limit for i in near):
                return False
        return True

    def _flat(self, which: Indices, mirrored: bool = False) -> Floats:
        coarse = self._coarse[which]
        return (coarse[:, :, ::-1] if mirrored else coarse).reshape(len(which), -1)


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


#: The harder ones first: fewer pictures are still known to a hash after a crop.
COPY_KINDS: tuple[CopyKind, ...] = (
    CopyKind("near_cropped", _cropped(0, 0, 2, 2), 92),
    CopyKind("near_cropped", _cropped(2, 2, 0, 0), None),
    CopyKind("near_mirrored", ImageOps.mirror, 90),
    CopyKind("near_reencoded", lambda image: image, 62),
    CopyKind("near_resized", _resized(0.8), 90),
    CopyKind("near_reencoded", lambda image: image, 75),
    CopyKind("near_resized", _resized(1.25), 90),
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


@dataclass(frozen=True)
class Copy:
    """A near-duplicate of the picture at index ``of``."""

    of: int
    kind: CopyKind
    data: bytes


def near_copies(files: Sequence[bytes], order: Sequence[int], crowd: Crowd, wanted: int) -> list[Copy]:
    """Near-duplicates of pictures taken in this order, the kinds as equal in number as can be.

    Copies that a perceptual hash must miss would make the truth a matter of luck (a symmetric picture has
    coefficients of about nothing, whose signs are noise): these pictures are passed over. Fewer than
    ``wanted`` come back only when there are too few pictures. ``crowd`` takes up what is made.
    """
    left = {i: wanted // len(COPY_KINDS) + (i < wanted % len(COPY_KINDS)) for i in range(len(COPY_KINDS))}
    used: set[int] = set()
    copies: list[Copy] = []
    for strict in (True, False):  # what the harder kinds could not fill, the others may
        for index in order:
            if len(copies) == wanted:
                return copies
            if index in used:
                continue
            original = decode(files[index])
            before = frequencies(original)
            if doubtful_bits(before, before) > _HASH_BITS:
                continue
            for number, kind in enumerate(COPY_KINDS):
                if strict and not left[number]:
                    continue
                data = _copy(original, before, index, kind, crowd)
                if data is not None:
                    copies.append(Copy(index, kind, data))
                    used.add(index)
                    left[number] -= 1
                    break
    return copies


def _copy(
    original: Image.Image, before: npt.NDArray[np.float64], index: int, kind: CopyKind, crowd: Crowd
) -> bytes | None:
    data = encode(kind.change(original), kind.quality)
    image = decode(data)
    thumb = thumbnail(image)
    if thumb_distance(crowd.thumbs[index], thumb) > COPY_WITHIN:
        return None
    if doubtful_bits(before, frequencies(image)) > _HASH_BITS or not crowd.alone(thumb, index):
        return None
    crowd.add(thumb)
    return data
