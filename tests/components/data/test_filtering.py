"""Filters and the caption's form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Prepare
from components.contracts.records import DropReason
from components.data.filtering import clean_caption, reject

RULES = Prepare(min_side=16, max_aspect=3, blank_std=2, max_caption_chars=20)


@pytest.mark.parametrize(
    ("width", "height", "std", "caption", "reason"),
    [
        (48, 48, 30.0, "a star", None),
        (16, 48, 2.0, "x" * 20, None),  # every limit itself stays
        (None, None, None, "a star", DropReason.UNDECODABLE),
        (15, 48, 30.0, "a star", DropReason.TOO_SMALL),
        (16, 49, 30.0, "a star", DropReason.ASPECT_RATIO),
        (48, 48, 1.99, "a star", DropReason.BLANK),
        (48, 48, 30.0, "", DropReason.CAPTION_EMPTY),
        (48, 48, 30.0, "x" * 21, DropReason.CAPTION_TOO_LONG),
    ],
)
def test_every_rule(
    width: int | None, height: int | None, std: float | None, caption: str, reason: DropReason | None
) -> None:
    found = reject(width, height, std, caption, RULES)
    assert (found and found[0]) == reason
    assert found is None or found[1]


@pytest.mark.parametrize(
    ("caption", "clean"),
    [(None, ""), ("  a\tred \n star ", "a red star"), ("cafe\u0301", "café"), ("a\x00b\x07", "ab"), (" \u3000 ", "")],
)
def test_captions_are_cleaned(caption: str | None, clean: str) -> None:
    assert clean_caption(caption) == clean


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean_caption(text)
    assert clean_caption(once) == once and once == once.strip() and "  " not in once
