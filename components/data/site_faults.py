"""The faults of the web that the world's website shows, and what must become of each.

Reasons are the words of ``CollectReason`` and ``DropReason``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
from PIL import Image

from components.contracts.errors import InputError
from components.contracts.records import CollectReason, DropReason
from components.data.scenes import Scene
from components.data.site_copies import encode
from components.data.site_pages import Page

#: Rows of each fault, as a share of the distinct originals. The first four fall on originals, which are
#: kept all the same; the others are rows of their own.
FAULT_RATES: dict[str, float] = {
    "flaky": 0.04,  # 500 or 503 at first, heals on retry
    "slow": 0.01,  # drips, but is done within a few hundred milliseconds
    "redirected": 0.01,
    "harmless_header": 0.005,  # an X-Robots-Tag that forbids nothing to a collector
    "http_404": 0.02,  # 404 and 410
    "http_error": 0.004,  # 403, 500, 503 for ever
    "too_slow": 0.001,  # silent or dripping for longer than the collector waits
    "hang_up": 0.001,  # connection closed without an answer
    "truncated": 0.01,
    "not_an_image": 0.015,  # HTML, under its own name or an image's
    "robots_disallowed": 0.015,
    "opt_out": 0.015,
    "refused_scheme": 0.003,
    "refused_address": 0.003,
    "redirect_loop": 0.001,
    "too_many_bytes": 0.0003,
    "too_many_pixels": 0.0006,
    "duplicate_exact": 0.05,
    "duplicate_near": 0.08,
    "blank": 0.01,
    "too_small": 0.01,
    "caption_empty": 0.01,
    "caption_too_long": 0.005,
}
NO_FAULTS: dict[str, float] = dict.fromkeys(FAULT_RATES, 0.0)

BODY_TOO_LARGE = 21_000_000  # bytes; just above the collector's default limit
PIXELS_TOO_MANY = (8000, 8000)

_HTML = (
    b"<!doctype html><html><head><title>Sign in</title></head><body><h1>Sign in to see this picture</h1>"
    b"<p>The picture has moved.</p></body></html>"
)
_PRIVATE = (
    "http://10.0.0.1",
    "http://169.254.169.254",
    "http://192.168.1.1",
    "http://[::1]:9",
    "http://127.0.0.1:9",
)
_SOMEWHERE = "/{prefix}/{number:06d}.jpg"
_SCHEMES = ("ftp://127.0.0.1", "file://", "gopher://127.0.0.1")


@dataclass(frozen=True, eq=False)
class Draft:
    """A row before it has its path. Drafts are told apart by identity."""

    caption: str
    page: Page
    outcome: str = "kept"
    reason: str | None = None
    kind: str = "plain"
    scene: Scene | None = None
    original: Draft | None = None
    folder: str = "img"
    elsewhere: str = ""  # a whole URL, with {prefix} and {number}
    redirect: str | None = None  # {hop} leads to the page, {self} round in a circle

    def dropped(
        self, reason: str, kind: str, caption: str, page: Page | None = None, original: Draft | None = None
    ) -> Draft:
        """The same picture, as a row that prepare must drop."""
        clean = Page((page or self.page).body, (page or self.page).content_type)
        return Draft(caption, clean, "prepare_dropped", str(DropReason(reason)), kind, self.scene, original)

    def failed(self, reason: CollectReason, kind: str, **changes: object) -> Draft:
        """The same picture, as a row that collect must refuse or fail on."""
        lost = replace(self, outcome="collect_failed", reason=str(reason), kind=kind)
        return replace(lost, **changes)  # type: ignore[arg-type]


def special_pictures(counts: dict[str, int], size: int, rng: np.random.Generator) -> list[Page]:
    """Blank pictures, each of another strong colour, so that none resembles another."""
    levels = [30, 70, 110, 150, 190, 230]
    colours = [c for c in product(levels, repeat=3) if max(c) - min(c) > 80]
    if counts["blank"] > len(colours):
        raise InputError(
            f"The world's website was asked for {counts['blank']} blank pictures",
            expected=f"at most {len(colours)}, each of another colour",
            remedy="lower the rate of blank pictures",
        )
    chosen = [colours[i] for i in rng.permutation(len(colours))[: counts["blank"]]]
    pages = []
    for number, colour in enumerate(chosen):
        quality = None if number % 2 else 90
        data = encode(Image.new("RGB", (size, size), colour), quality)
        pages.append(Page(data, "image/jpeg" if quality else "image/png"))
    return pages


def flaws(drafts: Sequence[Draft], blanks: Sequence[Page], counts: dict[str, int]) -> list[Draft]:
    """Rows that arrive and must be dropped for what they are. The last of ``drafts`` are tiny already."""
    empty, long = counts["caption_empty"], counts["caption_too_long"]
    rows = []
    for number, draft in enumerate(drafts[:empty]):
        rows.append(draft.dropped("caption_empty", "caption_empty", ("", "   ")[number % 2]))
    for draft in drafts[empty : empty + long]:
        rows.append(draft.dropped("caption_too_long", "caption_too_long", " ; ".join([draft.caption] * 40)))
    rows += [draft.dropped("too_small", "tiny", draft.caption) for draft in drafts[empty + long :]]
    for number, page in enumerate(blanks):
        caption = f"picture number {number}"
        rows.append(Draft(caption, page).dropped("blank", "blank", caption))
    return rows


def failures(
    originals: list[Draft],
    counts: dict[str, int],
    rng: np.random.Generator,
    fresh: Iterator[Draft],
    drip_seconds: float,
) -> list[Draft]:
    """Rows that never become samples; and some of the ``originals`` get a fault that heals, in place."""
    free = [int(i) for i in rng.permutation(len(originals))]
    harmless = ("all", "max-snippet:-1, max-image-preview:large")
    heal: dict[str, Callable[[Draft, int], Draft]] = {
        "flaky": lambda d, i: _with(d, "flaky", fail_first=((500,), (503,), (503, 500))[i % 3]),
        "slow": lambda d, i: _with(d, "slow", drip_s=0.15 + 0.05 * (i % 4)),
        "redirected": lambda d, i: replace(d, kind="redirected", redirect="{hop}"),
        "harmless_header": lambda d, i: _with(d, "harmless_header", headers=(("X-Robots-Tag", harmless[i % 2]),)),
    }
    healed: dict[int, Draft] = {}
    for name, change in heal.items():
        for i in range(min(counts[name], len(free))):
            index = free.pop()
            healed[index] = change(originals[index], i)
    for index, draft in healed.items():
        originals[index] = draft
    rows: list[Draft] = []
    for name, make in _failing(drip_seconds).items():
        rows += [make(next(fresh), i) for i in range(counts[name])]
    return rows


def _failing(drip_seconds: float) -> dict[str, Callable[[Draft, int], Draft]]:
    reason = CollectReason

    def truncated(d: Draft, i: int) -> Draft:
        if i % 2:  # the file itself ends early
            return _lost(d, reason.TRUNCATED, "file_cut", body=d.page.body[: len(d.page.body) // 2])
        half = d.page.body[: len(d.page.body) * 2 // 3]
        return _lost(d, reason.TRUNCATED, "body_cut", body=half, announced=len(d.page.body))

    def html(d: Draft, i: int) -> Draft:
        name = ("text/html; charset=utf-8", d.page.content_type)[i % 2]
        return _lost(d, reason.NOT_AN_IMAGE, ("html", "html_as_image")[i % 2], body=_HTML, content_type=name)

    def too_slow(d: Draft, i: int) -> Draft:
        if i % 2:
            return _lost(d, reason.TIMEOUT, "stall", stall_s=drip_seconds)
        return _lost(d, reason.TIMEOUT, "drip", drip_s=drip_seconds)

    def address(d: Draft, i: int) -> Draft:
        if i % 4 == 3:
            return d.failed(reason.REFUSED_ADDRESS, "redirect_inside", redirect=f"{_PRIVATE[1]}/latest/")
        where = _PRIVATE[i % len(_PRIVATE)] + _SOMEWHERE
        return d.failed(reason.REFUSED_ADDRESS, "address", elsewhere=where)

    tags = ("noai", "noimageai", "noai, noimageai", "max-snippet:-1, noai", "NoImageAI")
    return {
        "http_404": lambda d, i: _lost(
            d, reason.HTTP_404, "gone", status=(404, 404, 410)[i % 3], body=_HTML, content_type="text/html"
        ),
        "http_error": lambda d, i: _lost(
            d,
            reason.HTTP_ERROR,
            "broken",
            status=(500, 403, 503)[i % 3],
            body=_HTML,
            content_type="text/html",
        ),
        "too_slow": too_slow,
        "hang_up": lambda d, i: _lost(d, reason.CONNECTION, "hang_up", hang_up=True),
        "truncated": truncated,
        "not_an_image": html,
        "robots_disallowed": lambda d, i: d.failed(reason.ROBOTS_DISALLOWED, "private", folder="private"),
        "opt_out": lambda d, i: _lost(d, reason.OPT_OUT, "opt_out", headers=(("X-Robots-Tag", tags[i % len(tags)]),)),
        "refused_scheme": lambda d, i: d.failed(
            reason.REFUSED_SCHEME, "scheme", elsewhere=_SCHEMES[i % len(_SCHEMES)] + _SOMEWHERE
        ),
        "refused_address": address,
        "redirect_loop": lambda d, i: d.failed(reason.TOO_MANY_REDIRECTS, "redirect_loop", redirect="{self}"),
        "too_many_bytes": lambda d, i: _lost(
            d, reason.TOO_MANY_BYTES, "huge_body", zeros=BODY_TOO_LARGE - len(d.page.body)
        ),
        "too_many_pixels": lambda d, i: _lost(
            d, reason.TOO_MANY_PIXELS, "bomb", body=_bomb(*PIXELS_TOO_MANY), content_type="image/png"
        ),
    }


def _with(draft: Draft, kind: str, **changes: object) -> Draft:
    return replace(draft, kind=kind, page=replace(draft.page, **changes))  # type: ignore[arg-type]


def _lost(draft: Draft, reason: CollectReason, kind: str, **changes: object) -> Draft:
    return draft.failed(reason, kind, page=replace(draft.page, **changes))  # type: ignore[arg-type]


@cache
def _bomb(width: int, height: int) -> bytes:
    """A valid white PNG of one bit a pixel: small as a file, huge once decoded."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + b"\xff" * ((width + 7) // 8)) * height
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
