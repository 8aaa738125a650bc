from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.features import CaptionIndex, content_words, picture_columns, pixel_stats, words_of

CAPTIONS = ("a red fox in the snow", "a red fox in the snow", "the red barn", "A Snowy owl's nest", "snow on a barn")


def test_words_are_folded_and_neutral_words_name_nothing() -> None:
    assert words_of("Please draw: A RED fox, l’été (2)!") == ["please", "draw", "a", "red", "fox", "l'été", "2"]
    assert content_words("please draw me a picture of a red red fox!") == ["red", "fox"]


def test_columns_of_a_prompt() -> None:
    index = CaptionIndex(CAPTIONS)
    found = index.describe(["a blue fox in the snow", "the", "zebra yak"])
    assert found["words"] == [6, 1, 2]
    assert found["unseen_words"] == ["one", "none", "several"]
    assert found["unseen_share"] == [pytest.approx(1 / 3), 0.0, 1.0]
    assert found["familiarity"] == [pytest.approx(2 / 3), 1.0, 0.0]  # "red fox snow" holds two of three
    assert found["rarest"][2] == round(np.log2(5 / 0.5))
    assert found["topic"][2] == "other"
    assert index.unknown("a blue fox, a blue cat") == ["blue", "cat"]


def test_a_caption_is_judged_by_the_others() -> None:
    found = CaptionIndex(CAPTIONS).describe(CAPTIONS, own=True)
    assert found["unseen_words"] == ["none", "none", "none", "several", "none"]
    assert found["familiarity"][:2] == [1.0, 1.0]  # said twice: the other one holds all of it
    assert found["familiarity"][2] == pytest.approx(1 / 2)


def test_leaving_one_out_does_not_move_frequent_words() -> None:
    captions = tuple(f"{colour} {shape}" for colour in ("red", "blue") for shape in ("fox", "owl") for _ in range(30))
    index = CaptionIndex(captions)
    assert index.describe(captions, own=True) == index.describe(captions)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=2, max_size=20), st.text(max_size=60))
def test_any_text_has_columns_in_range(captions: list[str], prompt: str) -> None:
    index = CaptionIndex(tuple(captions))
    for own, texts in ((False, [prompt]), (True, captions)):
        found = index.describe(texts, own=own)
        assert {len(values) for values in found.values()} == {len(texts)}
        assert all(0 <= value <= 1 for name in ("unseen_share", "familiarity") for value in found[name])
        assert all(np.isfinite(found["rarity"]))
    assert not index.unknown(captions[0])


def test_picture_columns_match_their_definition() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[..., 0] = 255
    stats = pixel_stats(pixels.tobytes())
    assert stats.tolist() == [1, 0, 0, 0, 0, 0]
    columns = picture_columns(stats[None])
    assert columns == {"brightness": [pytest.approx(1 / 3)], "contrast": [0.0], "colourfulness": [1.0]}


def test_fewer_than_two_captions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        CaptionIndex(("one",))
