"""How large the frames coded in an AVIF are, which need not be what its container announces.

A decoder allocates by the AV1 sequence header (AV1 bitstream specification, 5.5), wherever the container's item or
sample tables (ISO/IEC 14496-12: ``iloc``, ``stco``, ``co64``) say that coded data lies.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
_MOST_PARTS = 10_000  # items and samples; a grid has one for each tile
_SEQUENCE_HEADER = 1


def boxes(body: bytes, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, position, size) of each box that lies whole between ``start`` and ``stop``, in order."""
    at, stop = start, len(body) if stop is None else stop
    while at + 8 <= stop:
        size = int.from_bytes(body[at : at + 4], "big")
        if size == 1 and at + 16 <= stop:
            size = int.from_bytes(body[at + 8 : at + 16], "big")
        elif size == 0:
            size = stop - at
        if size < 8 or at + size > stop:
            return
        yield body[at + 4 : at + 8], at, size
        at += size


def frame_pixels(body: bytes) -> int:
    """Pixels of the largest frame that any sequence header in the file's coded data announces.

    Raises:
        ValueError: the tables are damaged, or no coded data has a sequence header.
    """
    try:
        most = max((_largest(part) for part in _parts(body)), default=0)
    except (struct.error, IndexError) as error:
        raise ValueError("the tables of the AVIF are damaged") from error
    if not most:
        raise ValueError("the AVIF has no coded frame")
    return most


def _parts(body: bytes) -> Iterator[bytes]:
    """The coded data of every item and of every chunk of samples."""
    spans, stack = list[list[tuple[int, int]]](), [(0, len(body))]
    while stack:
        for name, at, size in boxes(body, *stack.pop()):
            if name == b"meta":
                spans += _items(body, at + 12, at + size)
            elif name in _CONTAINERS:
                stack.append((at + 8, at + size))
            elif name in (b"stco", b"co64"):
                count = min(struct.unpack_from(">I", body, at + 12)[0], _MOST_PARTS + 1)
                form = f">{count}{'I' if name == b'stco' else 'Q'}"
                spans += [[(place, len(body))] for place in struct.unpack_from(form, body, at + 16)]
            if len(spans) > _MOST_PARTS:
                raise ValueError("the AVIF has too many parts")
    for extents in spans:
        yield b"".join(body[start:stop] for start, stop in extents)


def _items(body: bytes, start: int, stop: int) -> list[list[tuple[int, int]]]:
    """Where each item's data lies, as (start, stop) in the file."""
    places = {name: (at, size) for name, at, size in boxes(body, start, stop)}
    if b"iloc" not in places:
        return []
    inner = places.get(b"idat", (0, 0))[0] + 8
    at = places[b"iloc"][0] + 8
    version, sizes = body[at], struct.unpack_from(">H", body, at + 4)[0]
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        if at + size > stop:
            raise ValueError("the table of items is cut off")
        at += size
        return int.from_bytes(body[at - size : at], "big")

    found = list[list[tuple[int, int]]]()
    for _ in range(number(2 if version < 2 else 4)):
        number(2 if version < 2 else 4)  # the item's id
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)  # of the file that has the data: this one
        base, extents = number(base_size), list[tuple[int, int]]()
        for _ in range(number(2)):
            number(index_size)
            place = base + number(offset_size) + (inner if method == 1 else 0)
            length = number(length_size)
            extents.append((place, place + length if length else len(body)))
            if len(extents) + len(found) > _MOST_PARTS:
                raise ValueError("the AVIF has too many parts")
        found.append(extents)
    return found


def _largest(data: bytes) -> int:
    """Pixels that the sequence headers among these OBUs announce at most; 0 where there are none."""
    most, at = 0, 0
    while at < len(data):
        head = data[at]
        if head & 0x80:  # the forbidden bit: this is other data, such as Exif
            break
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size, at = _leb128(data, at)
        if head >> 3 & 15 == _SEQUENCE_HEADER and at < len(data):
            most = max(most, _frame_of(data[at : at + min(size, 256)]))
        at += size
    return most


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << 7 * i
        if not data[at + i] & 0x80:
            return value, at + i + 1
    return len(data), at + 8


def _frame_of(header: bytes) -> int:
    """max_frame_width times max_frame_height of a sequence header's bytes."""
    bits, at = int.from_bytes(header, "big"), len(header) * 8

    def take(count: int) -> int:
        nonlocal at
        at -= count
        return bits >> at & (1 << count) - 1 if at >= 0 else 0

    take(3)  # seq_profile
    take(1)  # still_picture
    if take(1):  # reduced_still_picture_header
        take(5)
    else:
        delay_bits = 0
        if take(1):  # timing_info_present_flag
            take(64)
            if take(1):  # equal_picture_interval, then a number in uvlc
                zeros = 0
                while zeros < 32 and at > 0 and not take(1):
                    zeros += 1
                take(zeros)
            if take(1):  # decoder_model_info_present_flag
                delay_bits = take(5) + 1
                take(42)
        display_delay = take(1)
        for _ in range(take(5) + 1):
            take(12)
            if take(5) > 7:
                take(1)
            if delay_bits and take(1):
                take(2 * delay_bits + 1)
            if display_delay and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    return (take(width_bits) + 1) * (take(height_bits) + 1)
