"""An invisible mark in a picture's pixels: which request it answered, readable after JPEG, smaller sizes and mirroring.

Spread spectrum (Cox et al. 1997, "Secure Spread Spectrum Watermarking for Multimedia") on low DCT coefficients of the
whole picture's luma: coefficient (u, v) describes the same pattern at any size, so resizing moves nothing. Each of 56
bits has its own coefficients, drawn by the secret, and is the sign of their weighted sum. The picture is known while it
is marked, so only bits whose sum is not yet safely on the right side are pushed there (informed embedding after
Malvar and Florêncio 2003, "Improved Spread Spectrum"), more where the picture is busy than where it is flat.

The bits are 4 bytes of the SHA-256 of the request id and a check of 3 bytes, HMAC-SHA256 with the secret. Where the
check fails, the weakest bits are tried the other way round. So an unmarked picture is taken for a marked one about once
in 2**24 / 128 = 130,000 times, and nobody without the secret can mark a picture.

It is no defence against someone who wants it gone: turning, cropping, drawing the picture anew or strong noise remove
it. Measured by ``make bench-watermark``, see docs/security.md.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.secret import derived_key

MIN_SIDE = 32  # pixels; smaller pictures are left as they are: they have too few coefficients
_PAYLOAD, _CHECK = 4, 3  # bytes
_BITS = 8 * (_PAYLOAD + _CHECK)
_INNER, _OUTER = 6.0, 64.0  # radius of the coefficients used, in half-waves over the picture
_EDGE = 0.9  # of the indices that a picture has are used: the last are what resizing and JPEG spoil first
_STRENGTH = (
    22.0  # of a bit's sum, in grey levels of an orthonormal coefficient, at 256 x 256 pixels; grows with the side
)
_LEAST = 10.0  # of a bit of smaller pictures: JPEG's error per coefficient does not shrink with the picture
_MOST_CHANGE = 14.0  # grey levels that a pixel is changed by at most
_ROUNDS = 12
_TRIED = 6  # weakest bits that are tried the other way round: 64 readings, and as many of the mirrored picture

Floats = NDArray[np.float32]


def payload_of(request_id: str) -> bytes:
    """The 4 bytes that stand for a request in its pictures."""
    return hashlib.sha256(request_id.encode("utf-8", "surrogatepass")).digest()[:_PAYLOAD]


class Watermark:
    """Marks pictures and reads marks, with one secret. May be used from several threads.

    Args:
        secret: whoever knows it can read, forge and remove marks.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._layout = _layout(secret)

    @classmethod
    def of(cls, home: Path) -> Watermark:
        """With the secret of this home, made on first use.

        Raises:
            InputError: it is damaged.
        """
        return cls(derived_key(home, "watermark"))

    def embed(self, pixels: NDArray[np.uint8], request_id: str) -> NDArray[np.uint8]:
        """``pixels`` (H, W, 3) with the mark of that request; unchanged where a side is below :data:`MIN_SIDE`."""
        height, width = pixels.shape[:2]
        if min(height, width) < MIN_SIDE:
            return pixels
        payload = payload_of(request_id)
        bits = _bits(payload + self._check(payload))
        plan = _plan(self._layout, height, width)
        goal = max(_LEAST, _STRENGTH * float(np.sqrt(height * width)) / 256)
        busy = _busy(_luma(pixels))
        push, marked = np.zeros(_BITS, np.float32), pixels
        for _ in range(_ROUNDS):
            short = goal - bits * plan.sums(_luma(marked))
            if short.max() <= 0.05 * goal:
                break
            push += np.maximum(short, 0) / busy.mean()
            change = np.clip(busy * plan.picture(bits * push), -_MOST_CHANGE, _MOST_CHANGE)
            marked = np.clip(np.rint(pixels + change[..., None]), 0, 255).astype(np.uint8)
        return marked

    def read(self, pixels: NDArray[np.uint8]) -> bytes | None:
        """What :func:`payload_of` gave for the request that drew ``pixels`` (H, W, 3); None without a mark of ours."""
        height, width = pixels.shape[:2]
        if min(height, width) < MIN_SIDE // 2:
            return None
        plan = _plan(self._layout, height, width)
        for mirrored in (False, True):
            sums = plan.sums(_luma(pixels[:, ::-1] if mirrored else pixels))
            if payload := self._decoded(sums):
                return payload
        return None

    def _decoded(self, sums: Floats) -> bytes | None:
        hard = sums > 0
        weakest = np.argsort(np.abs(sums))[:_TRIED]
        for count in range(_TRIED + 1):
            for turned in itertools.combinations(weakest, count):
                bits = hard.copy()
                bits[list(turned)] ^= True
                data = np.packbits(bits).tobytes()
                if hmac.compare_digest(self._check(data[:_PAYLOAD]), data[_PAYLOAD:]):
                    return data[:_PAYLOAD]
        return None

    def _check(self, payload: bytes) -> bytes:
        return hmac.new(self._secret, payload, hashlib.sha256).digest()[:_CHECK]


@dataclass(frozen=True)
class _Layout:
    """Which coefficient (row, column) carries which bit, with which weight; for any picture."""

    secret: bytes
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    bit: NDArray[np.intp]
    weight: Floats


@dataclass(frozen=True)
class _Plan:
    """The layout for one size: ``across`` (h, H) and ``along`` (w, W) are the rows of the orthonormal DCT-II."""

    across: Floats
    along: Floats
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    bit: NDArray[np.intp]
    weight: Floats  # of each bit of unit length

    def sums(self, luma: Floats) -> Floats:
        """The weighted sum of each bit, (56,)."""
        found = (self.across @ luma @ self.along.T)[self.rows, self.columns]
        return np.bincount(self.bit, self.weight * found, _BITS).astype(np.float32)

    def picture(self, push: Floats) -> Floats:
        """The picture (H, W) that adds ``push`` (56,) to the sums."""
        spectrum = np.zeros((len(self.across), len(self.along)), np.float32)
        spectrum[self.rows, self.columns] = self.weight * push[self.bit]
        return (self.across.T @ spectrum @ self.along).astype(np.float32, copy=False)


def _layout(secret: bytes) -> _Layout:
    outer = int(_OUTER)
    rows, columns = np.divmod(np.arange(outer * outer), outer)
    radius = np.hypot(rows, columns)
    used = (radius >= _INNER) & (radius < _OUTER)
    rows, columns, radius = rows[used], columns[used], radius[used]
    # from a hash, not from a generator whose stream a later version may change
    drawn = np.frombuffer(hashlib.shake_256(secret + b"layout").digest(9 * len(rows)), np.uint8)
    order = np.argsort(drawn[: 8 * len(rows)].view("<u8"), kind="stable")
    bit = np.empty(len(rows), np.intp)
    bit[order] = np.arange(len(rows)) % _BITS
    sign = np.where(drawn[8 * len(rows) :] & 1, 1.0, -1.0)
    # coefficients of photographs fall with the radius: weights that rise give each the same say
    return _Layout(secret, rows, columns, bit, (sign * radius).astype(np.float32))


_KEPT_PLANS = 16


def _plan(layout: _Layout, height: int, width: int) -> _Plan:
    return _cached_plan(layout.secret, height, width)


@lru_cache(maxsize=_KEPT_PLANS)
def _cached_plan(secret: bytes, height: int, width: int) -> _Plan:
    layout = _layout(secret)
    across, along = (_cosines(min(int(_OUTER), int(_EDGE * side)), side) for side in (height, width))
    there = (layout.rows < len(across)) & (layout.columns < len(along))
    bit, weight = layout.bit[there], layout.weight[there]
    lengths = np.sqrt(np.bincount(bit, weight**2, _BITS))
    unit = weight / np.maximum(lengths, 1e-9)[bit]
    return _Plan(across, along, layout.rows[there], layout.columns[there], bit, unit.astype(np.float32))


def _cosines(count: int, side: int) -> Floats:
    """The first ``count`` rows of the orthonormal DCT-II over ``side`` samples."""
    angles = np.pi / side * np.arange(count)[:, None] * (np.arange(side)[None, :] + 0.5)
    found: NDArray[np.float64] = np.cos(angles) * np.sqrt(2 / side)
    found[0] /= np.sqrt(2)
    return found.astype(np.float32)


def _bits(data: bytes) -> Floats:
    """Each bit as -1 or 1."""
    return (np.unpackbits(np.frombuffer(data, np.uint8)).astype(np.float32) * 2 - 1).astype(np.float32)


def _luma(pixels: NDArray[np.uint8]) -> Floats:
    """ITU-R BT.601, which JPEG uses, 0..255."""
    found: Floats = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return found


def _busy(luma: Floats) -> Floats:
    """How much change a place bears without being seen: 0.5 where it is flat to 2 where it is busy."""
    import cv2

    mean, square = cv2.blur(luma, (7, 7)), cv2.blur(luma * luma, (7, 7))
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    found: Floats = np.clip(0.5 + deviation / 16, 0.5, 2.0).astype(np.float32)
    return found
