"""The tokenizer: equal bytes for equal captions, and what ``transformers`` makes of its folder."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import DataError
from components.contracts.manifest import Manifest
from components.data.captions import phrasings
from components.data.tokenizing import BEGIN, END, copy_tokenizer, count_cut, encode, train_tokenizer, write_tokenizer
from components.data.world import WorldSpec, all_singles
from components.runtime.storage import Artifact, Outcome, Store

CAPTIONS = [text for scene in list(all_singles(WorldSpec()))[::5] for text in phrasings(scene)]
FILES = train_tokenizer(CAPTIONS, 400, 32)


def ids_of(*captions: str) -> list[list[int]]:
    found: list[list[int]] = encode(FILES, captions, 32).to_pylist()
    return found


def test_order_and_repetition_of_the_work_change_no_byte() -> None:
    shuffled = random.Random(1).sample(CAPTIONS, len(CAPTIONS))
    assert train_tokenizer(shuffled, 400, 32) == FILES


def test_tokens_have_begin_and_end_and_fit() -> None:
    rows = ids_of("a large red star in the centre on a white background", "", "zebra " * 99)
    assert all(r[0] == 0 and r[-1] == 1 and 0 not in r[1:] and 1 not in r[:-1] for r in rows)
    assert [len(r) for r in rows[1:]] == [2, 32] and len(rows[0]) <= 14
    assert ids_of("A  Large\tRED star ") == ids_of("a large red star")
    assert encode(FILES, [], 32).to_pylist() == []


def test_what_is_cut_is_counted() -> None:
    files = train_tokenizer(["a b c d"] * 3, 300, 6)
    captions = ["a b c d", "a b c d e", "a", "", "a b c d e f g h"]  # the first one is read whole
    whole = [len(row) for row in encode(files, captions, 99).to_pylist()]
    longest = whole[0]
    tokens = encode(files, captions, longest)
    assert count_cut(files, pa.array(captions), tokens, longest) == sum(n > longest for n in whole) == 2
    assert count_cut(files, pa.array([], pa.string()), encode(files, [], 6), 6) == 0


def test_many_captions_are_encoded_in_pieces_of_one_result() -> None:
    many = (CAPTIONS * (25_000 // len(CAPTIONS) + 1))[:25_000]  # more than two pieces
    rows = encode(FILES, many, 32)
    assert rows.type == pa.list_(pa.int32()) and len(rows) == 25_000
    for at in (0, 9_999, 10_000, 19_999, 20_000, 24_999):
        assert [rows[at].as_py()] == ids_of(many[at])


def test_transformers_opens_the_folder_and_pads_as_a_pipeline_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    write_tokenizer(FILES, tmp_path / "tokenizer")
    for loader in (PreTrainedTokenizerFast, AutoTokenizer):
        opened = loader.from_pretrained(tmp_path / "tokenizer")
        assert (opened.bos_token, opened.eos_token, opened.pad_token) == (BEGIN, END, END)
        assert opened.model_max_length == 32 and len(opened) <= 400
        text = ["a small blue heart", "zebra " * 99]
        ids = opened(text, padding="max_length", max_length=opened.model_max_length, truncation=True).input_ids
        assert [len(row) for row in ids] == [32, 32]
        for row, ours in zip(ids, ids_of(*text), strict=True):
            assert row[: len(ours)] == ours and set(row[len(ours) :]) <= {1}
        again = tmp_path / "again"
        opened.save_pretrained(again)
        assert PreTrainedTokenizerFast.from_pretrained(again)(text).input_ids[0] == ids_of(*text)[0]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_has_tokens_and_comes_back(text: str) -> None:
    import unicodedata

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(FILES["tokenizer.json"].decode())
    expected = " ".join(unicodedata.normalize("NFC", text).lower().split())
    got = " ".join(tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True).split())
    assert unicodedata.normalize("NFKC", got).lower() == unicodedata.normalize("NFKC", expected).lower()


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(DataError, match=r"prepare\.vocabulary is 100.*258"):
        train_tokenizer(CAPTIONS, 100, 32)


def made(store: Store, kind: str, prefix: str) -> Artifact:
    draft = store.draft(kind, {}, {})
    write_tokenizer(FILES, draft.dir / prefix / "tokenizer")
    return draft.commit(Outcome())


@pytest.mark.parametrize("prefix", ["", "pipeline"])
def test_a_tokenizer_is_copied_byte_for_byte(tmp_path: Path, prefix: str) -> None:
    artifact = made(Store(str(tmp_path)), "model", prefix)
    assert isinstance(artifact.manifest, Manifest) and copy_tokenizer(artifact, 32) == FILES
    with pytest.raises(DataError, match="reads 32 tokens"):
        copy_tokenizer(artifact, 64)


def test_an_artifact_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).draft("model", {}, {}).commit(Outcome())
    with pytest.raises(DataError, match="holds no tokenizer"):
        copy_tokenizer(artifact, 32)
