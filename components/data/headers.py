"""What the first bytes of a picture's file announce, read before any library opens it.

Decoders trust parts of a header that say how much to allocate or how often to go over the picture. What they
do not bound by themselves is bounded here: the scans of a progressive JPEG, the tiles and further pages of a
TIFF, the frame inside an AVIF. Also here: whether a file is whole as far as its structure tells, for pictures
that are kept without being decoded.
"""

from __future__ import annotations

import struct

from components.data.avif import boxes, frame_pixels

# Pillow's names; kinds that are known but not read have a lower-case name for the message
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"), (b"BM", "BMP"),
    (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"), (b"II+\x00", "TIFF"), (b"MM\x00+", "TIFF"),
    (b"\xff\x0a", "a JPEG XL picture"), (b"\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 picture"), (b"%!PS", "a PostScript file"), (b"%PDF", "a PDF file"),
    (b"8BPS", "a Photoshop file"),
)  # fmt: skip
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
ENDINGS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}


def kind_of(body: bytes) -> str:
    """A key of :data:`ENDINGS`, or what the file looks like instead, in words ("an HTML page")."""
    for magic, kind in _MAGIC:
        if body.startswith(magic):
            return kind
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    if body[4:8] == b"ftyp":
        brands = [body[8:12], *(body[at : at + 4] for at in range(16, min(_u32(body, 0), 256, len(body)), 4))]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "a HEIC picture" if any(brand in _HEIC for brand in brands) else "a film or another container"
    start = body[:512].lstrip().lower()
    if not start:
        return "an empty file"
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
        return "an HTML page"
    return "an SVG drawing" if b"<svg" in start else "other data"


def scans(body: bytes, enough: float = 0) -> int:
    """Scans of a JPEG: how often a decoder goes over the whole picture. Sequential pictures have 1 to 4.

    Args:
        enough: where there are fewer, any number that is fewer may be given; that is ten times faster to say.
    """
    most = body.count(0xDA)  # of single bytes, at the speed of memory
    # thumbnails in metadata have scans too, so this may count a few too many
    return most if most < enough else body.count(b"\xff\xda")


def most_pixels(body: bytes, kind: str, announced: int) -> int:
    """The most pixels that a decoder allocates in one piece for a picture that announces so many.

    Raises:
        ValueError: the header is damaged.
    """
    if kind == "TIFF":  # a tile may be larger than the picture
        fields, _ = tiff_fields(body)
        return max(announced, max(fields.get(322, [0]), default=0) * max(fields.get(323, [0]), default=0))
    if kind == "AVIF":  # the coded frame may be larger than the container says
        return max(announced, frame_pixels(body))
    return announced


def webp_is_lossless(body: bytes) -> bool:
    """Whether the first picture of a WebP (RFC 9649) is in its lossless form."""
    at = 12
    while at + 8 <= len(body):
        name = body[at : at + 4]
        if name in (b"VP8L", b"VP8 "):
            return name == b"VP8L"
        if name == b"ANMF":
            at += 8 + 16  # the frame's own chunks follow
            continue
        size = int.from_bytes(body[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def missing(body: bytes, kind: str) -> str | None:
    """What a file of this kind lacks at its end, in words; None if it is whole as far as its structure tells.

    Pixel data is not looked at, so damage inside it is not found. Data after the end is not minded.
    """
    if kind == "JPEG":  # neither marker can occur inside of coded data
        end = body.rfind(b"\xff\xd9")
        return None if end >= 0 and body.find(b"\xff\xda", end) < 0 else "its end marker"
    if kind == "PNG":
        return _missing_of_png(body)
    if kind == "GIF":
        return None if body.rstrip(b"\0").endswith(b";") else "its trailer"
    if kind == "WEBP":
        size = struct.unpack_from("<I", body, 4)[0] if len(body) >= 8 else 0
        return None if 12 <= size + 8 <= len(body) + 1 else "part of its data"
    if kind == "BMP":
        return _missing_of_bmp(body)
    if kind == "TIFF":
        return _missing_of_tiff(body)
    if kind == "AVIF":
        return None if sum(size for _, _, size in boxes(body)) == len(body) else "part of its last box"
    raise AssertionError(f"{kind} is not read")


def _missing_of_png(body: bytes) -> str | None:
    at = 8
    while at + 12 <= len(body):
        length = _u32(body, at)
        if at + 12 + length > len(body):
            return "part of a chunk"
        if body[at + 4 : at + 8] == b"IEND":
            return None
        at += 12 + length
    return "its end chunk"


def _missing_of_bmp(body: bytes) -> str | None:
    if len(body) < 54:
        return None if len(body) >= 26 else "its header"
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", body, 10)
    if compression in (0, 3) and offset + (abs(width) * bits + 31) // 32 * 4 * abs(height) > len(body):
        return "part of its rows"
    return None


# -- TIFF (TIFF 6.0, section 2; BigTIFF)


def tiff_fields(body: bytes) -> tuple[dict[int, list[int]], int]:
    """The whole-number fields of the first page, and where in the file the offset of the next page stands.

    Raises:
        ValueError: the directory is not within the file, or too long.
    """
    order = "<" if body[:2] == b"II" else ">"
    big = body[2:4] in (b"+\0", b"\0+")
    number, entry_size, width = ("Q", 20, 8) if big else ("I", 12, 4)
    try:
        at = struct.unpack_from(order + number, body, 8 if big else 4)[0]
        count = struct.unpack_from(order + ("Q" if big else "H"), body, at)[0]
        at += 8 if big else 2
        if count > 4096 or at + count * entry_size + width > len(body):
            raise ValueError("the directory of the first page is not within the file")
        fields = {}
        for entry in range(at, at + count * entry_size, entry_size):
            tag, form, length = struct.unpack_from(f"{order}HH{number}", body, entry)
            code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(form)
            if code is None or length > len(body):
                continue
            values = f"{order}{length}{code}"
            where = entry + entry_size - width
            if struct.calcsize(values) > width:
                where = struct.unpack_from(order + number, body, where)[0]
            fields[tag] = list(struct.unpack_from(values, body, where))
        return fields, at + count * entry_size
    except struct.error as error:
        raise ValueError("the directory of the first page is not within the file") from error


def first_page(body: bytes) -> bytes:
    """The TIFF without its further pages, which a decoder would otherwise go through one by one.

    Raises:
        ValueError: as :func:`tiff_fields`.
    """
    _, at = tiff_fields(body)
    width = 8 if body[2:4] in (b"+\0", b"\0+") else 4
    if not any(body[at : at + width]):
        return body
    return body[:at] + bytes(width) + body[at + width :]


def _missing_of_tiff(body: bytes) -> str | None:
    try:
        fields, _ = tiff_fields(body)
    except ValueError:
        return "its directory"
    offsets, counts = fields.get(273) or fields.get(324) or [], fields.get(279) or fields.get(325) or []
    if any(at + size > len(body) for at, size in zip(offsets, counts, strict=False)):
        return "part of its strips"
    return None if offsets else "its strips"


def _u32(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 4], "big")
