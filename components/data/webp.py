"""The first picture of an animated WebP (RFC 9649) as a file of its own, so that a plain decoder reads it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_ALPHA_FLAG = 0x10


@dataclass(frozen=True)
class Frame:
    """``body`` is a still WebP of ``size`` (width, height); ``place`` (x, y) is where it lies on the canvas."""

    body: bytes
    place: tuple[int, int]
    size: tuple[int, int]

    def on_canvas(self, pixels: Any, canvas: tuple[int, int]) -> Any:
        """The canvas (width, height) with the decoded frame on it: (height, width, channels), 0 around it.

        Raises:
            ValueError: the frame was not of the size that it announced.
        """
        if pixels.shape[1::-1] != self.size:
            raise ValueError("the frame is of another size than it says")
        if self.size == canvas:
            return pixels
        whole = np.zeros((canvas[1], canvas[0], *pixels.shape[2:]), dtype=pixels.dtype)
        x, y = self.place
        whole[y : y + self.size[1], x : x + self.size[0]] = pixels
        return whole


def first_frame(body: bytes, canvas: tuple[int, int], alpha: bool) -> Frame | None:
    """The first frame of an animation; None where the file is no animation.

    Args:
        canvas: width and height that the header announces.
        alpha: whether transparency counts.

    Raises:
        ValueError: the frame does not lie on the canvas, or is not within the file.
    """
    for name, start, stop in _chunks(body, 12, len(body)):
        if name in (b"VP8 ", b"VP8L"):
            return None
        if name == b"ANMF":
            if stop - start < 16:
                break
            x, y, width, height = (int.from_bytes(body[start + 3 * n : start + 3 * n + 3], "little") for n in range(4))
            x, y, width, height = 2 * x, 2 * y, width + 1, height + 1
            if x + width > canvas[0] or y + height > canvas[1]:
                raise ValueError("the first frame reaches over the canvas")
            parts = [
                body[at - 8 : end + (end - at) % 2]
                for kind, at, end in _chunks(body, start + 16, stop)
                if kind in (b"ALPH", b"VP8 ", b"VP8L")
            ]
            # its size is written before it, so that a decoder holds the coded picture against it
            head = b"VP8X" + struct.pack("<II", 10, _ALPHA_FLAG * alpha) + _size(width) + _size(height)
            inner = b"WEBP" + head + b"".join(parts)
            return Frame(b"RIFF" + struct.pack("<I", len(inner)) + inner, (x, y), (width, height))
    raise ValueError("the file has no picture")


def _chunks(body: bytes, at: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of the payload of every chunk; one that is cut off ends with what it is in."""
    while at + 8 <= stop:
        size = int.from_bytes(body[at + 4 : at + 8], "little")
        yield body[at : at + 4], at + 8, min(at + 8 + size, stop)
        at += 8 + size + size % 2


def _size(value: int) -> bytes:
    return (value - 1).to_bytes(3, "little")
