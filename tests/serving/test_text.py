"""Any text through the text side: tokenizer, text encoder and the API's schema; every script, no crash."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Serve, TextEncoder
from components.data.tokenizing import encode, train_tokenizer, write_tokenizer
from components.data.wording import clean_caption
from components.models.reading import Reader, projecting_tower
from components.models.text_encoder import load_tokenizer, make_clip
from serving.limits import Limits
from serving.schemas import ApiError

LENGTH = 16
GENERATOR: Any = SimpleNamespace(image_size=32, granularity=0, samplers=(), uses_steps=True, uses_seed=True)
SCRIPTS = (
    "ein roter Stern auf weißem Grund", "красная звезда", "κόκκινο αστέρι", "红色的星星在灰色背景上", "赤い星",
    "빨간 별", "नीले रंग का तारा", "ดาวสีแดง", "წითელი ვარსკვლავი", "նարնջագույն աստղ", "ኮከብ ቀይ", "נקודה אדומה",
    "نجمة حمراء كبيرة",
    "a \U0001f99c and \U0001f469\u200d\U0001f469\u200d\U0001f467 under a \U0001f3f3\ufe0f\u200d\U0001f308",
    "e\u0301\u0323 a\u030a Z" + "\u0351\u036b\u0343\u0334" * 30, "\u202eright to left\u202c", "ﬁ ½ Ⅷ ℌ", "İI ı ß ẞ",
    "\U0001d518\U0001d52b \U000103a0\U000103a1 \U00013000", "\x00\x07\x1b[31m", "\ufeff\u200b\u2060",
    "a\u2028b\u2029c\u0085d",
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60) | st.sampled_from(SCRIPTS)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return train_tokenizer([*SCRIPTS, "a red star on a grey background"], 400, LENGTH)


@pytest.fixture(scope="module")
def reader(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(files, folder)
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    clip = make_clip(TextEncoder(width=16, layers=1, image_layers=1, heads=2), tokenizer, 16)
    yield Reader(tokenizer, projecting_tower(clip), torch.device("cpu"))


@settings(max_examples=80, deadline=None)
@given(text=TEXT)
@example(text="")
@example(text=" \t\n")
@example(text="ein " * 40)
def test_any_text_has_tokens_states_and_says_whether_it_is_cut(
    files: dict[str, bytes], reader: Reader, text: str
) -> None:
    ids = encode(files, [text], LENGTH)[0].as_py()
    begin, end = encode(files, [""], LENGTH)[0].as_py()
    assert ids[0] == begin and ids[-1] == end and len(ids) <= LENGTH and max(ids) < 400
    whole = encode(files, [text], 10_000)[0].as_py()
    assert reader.truncated(text) == (len(whole) > LENGTH)
    read = reader.read([text, "a red star"])
    assert all(part.isfinite().all() for part in (read.words, read.sentence))
    assert int(read.mask[0].sum()) == len(ids)


@settings(max_examples=80, deadline=None)
@given(text=TEXT)
def test_composed_and_decomposed_text_are_one(files: dict[str, bytes], text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    first, second = encode(files, forms, LENGTH).to_pylist()
    assert first == second
    clean = clean_caption(text)
    assert clean_caption(clean) == clean and clean == unicodedata.normalize("NFC", clean)


@settings(max_examples=80, deadline=None)
@given(text=TEXT, negative=TEXT, escaped=st.booleans())
@example(text="\ud800", negative="", escaped=True)
@example(text="a star", negative="\udfff", escaped=True)
def test_the_api_takes_any_text_or_says_why_not(text: str, negative: str, escaped: bool) -> None:
    limits = Limits(Serve(), "atelier")
    given_: dict[str, Any] = {"prompt": text, "negative_prompt": negative}
    try:
        (order,) = limits.orders(limits.parse(json.dumps(given_, ensure_ascii=escaped).encode()), GENERATOR)
    except ApiError as error:
        assert error.status == 400 and error.message
        assert not text.strip() or any("\ud800" <= c <= "\udfff" for c in text + negative)
    else:
        assert order.prompt == text and order.negative_prompt == (negative or None)
