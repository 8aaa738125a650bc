"""What is measured of captions, and their form."""

from __future__ import annotations

import json
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.data.wording import PERSONAL, clean_caption, language_of, listed, measure, personal_data, redact

REAL = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        (None, ""),
        ("  a\tred \n star ", "a red star"),
        ("cafe\u0301", "café"),
        ("e\x00\u0301", "é"),  # what is composed only when the control between has gone
        ("a\x00b\x07", "ab"),
        (" \u3000 ", ""),
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zerowidth"),
        ("\u202egnp.exe\u202c", "gnp.exe"),  # writing turned round
        ("👩\u200d🚀 नमस्\u200dते", "👩\u200d🚀 नमस्\u200dते"),  # joiners have a meaning
    ],
)
def test_captions_are_cleaned(caption: str | None, clean: str) -> None:
    assert clean_caption(caption) == clean


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=60))
@example("\ud800a\u2000\u0301\u200b\u0323 ")
def test_clean_captions_are_normal(text: str) -> None:
    once = clean_caption(text)
    assert clean_caption(once) == once == once.strip() and "  " not in once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in once)
    once.encode()


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("a watercolour painting of a small house by the sea with two boats in front of it", "en"),
        ("eine alte Frau mit Regenschirm vor einem Haus", "de"),
        ("un chien qui court sur la plage", "fr"),
        ("un perro corriendo por la playa con dos niños", "es"),
        ("白い背景に赤い星", "ja"),
        ("白色背景上的红星", "zh"),
        ("흰 배경에 빨간 별", "ko"),
        ("نجمة حمراء على خلفية بيضاء", "ar"),
        # too little to say so
        ("star", None), ("Porsche 911", None), ("IMG_2031.jpg", None), ("12 34", None), ("", None), ("🌟🌟", None),
    ],
)  # fmt: skip
def test_languages_are_named_where_they_are_sure(caption: str, language: str | None) -> None:
    found, confidence = language_of(caption)
    assert found == language and 0 <= confidence <= 1 and (confidence >= 0.7) == (found is not None)


def test_english_captions_are_hardly_ever_of_another_language() -> None:
    if not REAL.exists():
        pytest.skip("the shared data is not here")
    captions: set[str] = set()
    for file, column in (("prompts", "prompt"), ("emoji", "caption"), ("grocery_photos", "description")):
        every = sorted(set(pq.read_table(REAL / f"{file}.parquet", columns=[column])[column].drop_null().to_pylist()))
        captions |= set(every[:: max(1, len(every) // 400)])
    found = [language_of(clean_caption(caption))[0] for caption in captions]
    assert sum(code not in (None, "en") for code in found) <= 2
    assert found.count("en") > 300


@pytest.mark.parametrize(
    ("caption", "redacted"),
    [
        ("mail jo.doe+art@example.co.uk now", "mail [email] now"),
        ("jane (at) example (dot) org", "[email]"),
        ("by @some_artist, thanks", "by [handle], thanks"),
        ("follow @me@social.example today", "follow [email] today"),
        ("call +49 30 901820", "call [phone]"),
        ("(212) 736-5000, New York", "[phone], New York"),
        ("020 7946 0958", "[phone]"),
        ("01 42 68 53 00", "[phone]"),
        ("4111 1111 1111 1111 exp 12/29", "[card] exp 12/29"),
        ("IBAN DE89 3704 0044 0532 0130 00 BERLIN", "IBAN [iban] BERLIN"),
        ("GB82WEST12345698765432", "[iban]"),
        ("from 8.8.4.4 or 2001:4860:4860::8888.", "from [ip] or [ip]."),
    ],
)
def test_personal_data_is_found_and_put_out(caption: str, redacted: str) -> None:
    assert redact(caption) == redacted
    assert measure(caption).personal and set(measure(caption).personal.split(",")) <= set(PERSONAL)


@pytest.mark.parametrize(
    "caption",
    [
        "4111-1111-1111-1112",  # the checksum is wrong
        "DE89 3704 0044 0532 0130 01", "192.168.1.1", "fe80::1", "v1.2.3", "2019-10-12 14:30", "12:30:15",
        "ISBN 978-3-16-148410-0", "1920 x 1080", "1977 1985 1997 2001", "51.5074 -0.1278", "item 20445318",
        "1,234,567,890", "5 x 10 cm, 100 200 300", "SKU 123-456-7890", "icon@2x.png", "@2x", "a @ b", "me @ 5 pm",
        "00:30, 0030, 12:30, 1230", "DSC_20190312_123456.jpg", "Porsche 911 996 997", "meet at dot com",
    ],
)  # fmt: skip
def test_other_numbers_and_signs_stay(caption: str) -> None:
    assert personal_data(caption) == [] and redact(caption) == caption


def test_no_false_alarm_among_real_captions() -> None:
    if not REAL.exists():
        pytest.skip("the shared data is not here")
    found = {}
    columns = {"prompts": ["prompt"], "emoji": ["caption", "keywords"], "grocery_photos": ["caption", "description"]}
    for file, names in columns.items():
        table = pq.read_table(REAL / f"{file}.parquet", columns=names)
        for caption in {c for name in names for c in table[name].drop_null().to_pylist()}:
            if spans := personal_data(clean_caption(caption)):
                found[caption] = spans
    assert not found, json.dumps(found)


@settings(max_examples=200, deadline=None)
@example(["4111 1111 1111 1111", "@", "DE89"])  # a handle only once the number before it is gone
@given(st.lists(st.sampled_from([*"@a. 1+-:é", "(at)", "b.co", "4111 1111 1111 1111", "DE89"]), max_size=30))
def test_redaction_leaves_nothing_to_redact(parts: list[str]) -> None:
    text = clean_caption("".join(parts))
    spans = personal_data(text)
    assert spans == sorted(spans) and all(a[1] <= b[0] for a, b in pairwise(spans))
    assert personal_data(redact(text)) == []


@pytest.mark.parametrize(
    ("caption", "words", "repetition"),
    [
        ("", 0, 0.0), ("?!", 0, 0.0), ("a red star", 3, 0.0), ("sale SALE sale sale", 4, 0.75),
        ("don't l’été state-of-the-art", 3, 0.0), ("नमस्ते दुनिया", 2, 0.0),
        ("海上的海", 4, 0.0),  # a character may come twice in any sentence
        ("红星红星红星", 6, 0.5),
    ],
)  # fmt: skip
def test_words_and_their_repetition(caption: str, words: int, repetition: float) -> None:
    found = measure(caption)
    assert (found.words, found.characters) == (words, len(caption))
    assert found.repetition == pytest.approx(repetition)


@pytest.mark.parametrize(
    ("words", "caption", "hit"),
    [
        (("gun",), "a GUN.", True), (("gun",), "a gunship", False), (("big  dog",), "the Big dog", True),
        (("straße",), "STRASSE", True), (("c++",), "i write C++ code", True), (("c++",), "c+ code", False),
        (("毒品",), "买毒品吧", True), (("e\u0301te\u0301",), "ÉTÉ", True),
        (("a", "ab"), "ab", True), (("(",), "a ( b", True),
    ],
)  # fmt: skip
def test_listed_words_are_found_whole_and_in_any_case(words: tuple[str, ...], caption: str, hit: bool) -> None:
    assert (listed(words).search(clean_caption(caption)) is not None) == hit


def test_no_words_no_pattern() -> None:
    assert listed(()) is None and listed((" ", "\x00")) is None


@pytest.mark.parametrize(
    "part", ["1234567 ", "+49 30 ", "a@", "a@b.co ", "DE89 ", ":1", "a (at) ", "字", "(", "1.", "@a_"]
)
def test_long_captions_take_no_quadratic_time(part: str) -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        measure(clean_caption(part * (size // len(part))))
        return time.process_time() - started

    seconds(100)
    assert seconds(8_000) < 40 * seconds(1_000) + 0.2  # 64 times where it were quadratic
