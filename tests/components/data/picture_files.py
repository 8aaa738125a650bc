"""Picture files made on the spot for tests: photographs, odd modes, profiles, bombs."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some grain: compresses like a photograph."""
    rng = np.random.default_rng(seed)
    base = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    grain = rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(base, dtype=np.float32) + grain, 0, 255).astype(np.uint8))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extra: bytes, pixels: bytes = b"\0" * 1000, bits: int = 1, colour: int = 0) -> bytes:
    """A PNG, grey by default, that announces this size, with further chunks before its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + end


def zeros(size: int) -> bytes:
    """So many zero bytes, deflated."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def tiff(fields: dict[int, tuple[int, list[int]]], tail: bytes = b"", pages: int = 1) -> bytes:
    """A little-endian TIFF of whole-number fields ``{tag: (type, values)}``, then ``tail``; pages share the fields."""
    size = 2 + 12 * len(fields) + 4
    parts = [b"II*\0", struct.pack("<I", 8)]
    for page in range(pages):
        at = 8 + page * size
        parts.append(struct.pack("<H", len(fields)))
        for tag, (form, values) in sorted(fields.items()):
            value = struct.pack({3: "<H", 4: "<I"}[form], values[0]).ljust(4, b"\0")
            parts.append(struct.pack("<HHI", tag, form, len(values)) + value)
        parts.append(struct.pack("<I", at + size if page + 1 < pages else 0))
    return b"".join(parts) + tail


def grey_tiff(side: int, pages: int = 1, tile: int = 0) -> bytes:
    """An uncompressed grey TIFF; its pixels follow the directories. ``tile``: as one tile of that side, deflated."""
    fields = {
        256: (4, [side]),
        257: (4, [side]),
        258: (3, [8]),
        259: (3, [8 if tile else 1]),
        262: (3, [1]),
        277: (3, [1]),
    }
    data = zlib.compress(bytes(side * side)) if tile else bytes(side * side)
    named = {322: (4, [tile]), 323: (4, [tile])} if tile else {278: (4, [side])}
    places, sizes = (324, 325) if tile else (273, 279)
    fields |= named | {places: (4, [0]), sizes: (4, [len(data)])}
    start = 8 + pages * (2 + 12 * len(fields) + 4)
    fields[places] = (4, [start])
    return tiff(fields, data, pages)


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    body = encoded(Image.new("RGB", (width, height)), "JPEG", progressive=True)
    last, end = body.rfind(b"\xff\xda"), body.rfind(b"\xff\xd9")
    return body[:last] + body[last:end] * (scans - body.count(b"\xff\xda") + 1) + body[end:]


def hidden_avif(announced: int, side: int) -> bytes:
    """An AVIF that announces a small square and carries a large one."""
    body = encoded(Image.new("RGB", (side, side), "red"), "AVIF", speed=10, quality=30)
    at = body.find(b"ispe") + 8
    return body[:at] + announced.to_bytes(4, "big") * 2 + body[at + 8 :]
