"""Which collected samples stay: every rule gives ``None`` or the reason and one line for people."""

from __future__ import annotations

import unicodedata

from components.contracts.recipe import Prepare
from components.contracts.records import DropReason

Rejection = tuple[DropReason, str]


def clean_caption(caption: str | None) -> str:
    """The caption in Unicode NFC, runs of white space as one space, none at the ends; control characters go."""
    text = unicodedata.normalize("NFC", caption or "")
    text = "".join(c if unicodedata.category(c) not in ("Cc", "Cs") or c.isspace() else "" for c in text)
    return " ".join(text.split())


def reject(
    width: int | None, height: int | None, grey_std: float | None, caption: str, rules: Prepare
) -> Rejection | None:
    """The first rule that a sample breaks, or None if it stays.

    Args:
        width, height: of the collected picture in pixels, None where it could not be decoded.
        grey_std: standard deviation of its grey values, 0..127.5.
        caption: as :func:`clean_caption` gives it.
        rules: the recipe's section.
    """
    if width is None or height is None or grey_std is None:
        return DropReason.UNDECODABLE, "the picture in the shard cannot be decoded"
    if min(width, height) < rules.min_side:
        return DropReason.TOO_SMALL, f"{width}x{height} pixels, the shorter side must have {rules.min_side}"
    aspect = max(width, height) / min(width, height)
    if aspect > rules.max_aspect:
        return DropReason.ASPECT_RATIO, f"{width}x{height} is {aspect:.2f} to 1, at most {rules.max_aspect:g} stays"
    if grey_std < rules.blank_std:
        return DropReason.BLANK, f"grey values vary by {grey_std:.2f}, at least {rules.blank_std:g} stays"
    if not caption:
        return DropReason.CAPTION_EMPTY, "no caption"
    if len(caption) > rules.max_caption_chars:
        return DropReason.CAPTION_TOO_LONG, f"{len(caption)} characters, at most {rules.max_caption_chars} stay"
    return None
