"""COCO captions, and the stream that they are read as."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import InputError
from components.contracts.recipe import Collect
from components.data import json_stream
from components.data.coco import read_coco
from components.data.json_stream import BadJson, array_elements
from components.data.sources import listed_files
from tests.components.data.literature import make_coco


def test_every_picture_with_its_captions_and_its_split(tmp_path: Path) -> None:
    folder = make_coco(tmp_path, {"train2014": 3, "val2014": 2})
    rows = listed_files(Collect(files=str(folder), layout="coco")).to_pylist()
    assert [row["split"] for row in rows] == ["train"] * 3 + ["holdout"] * 2
    assert rows[0]["url"].endswith("/train2014/COCO_train2014_000000000001.jpg")
    said = sorted([rows[0]["caption"], *rows[0]["alternatives"]])
    assert said == [f"Picture 1 said in way {line}." for line in range(5)]


def test_one_subset_alone_tells_no_split_and_pictures_are_found(tmp_path: Path) -> None:
    folder = make_coco(tmp_path, {"train2014": 2})
    (folder / "images").mkdir()
    (folder / "train2014").rename(folder / "images" / "train2014")
    (folder / "annotations" / "captions_train2014.json").rename(folder / "captions_train2014.json")
    rows = read_coco(str(folder)).to_pylist()
    assert {row["split"] for row in rows} == {None} and "/images/train2014/" in rows[0]["url"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "instead of '{'"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}', "ends early"),
        ('{"images": [{"id": 1}]}', "no 'file_name'"),
        ('{"images": [], "annotations": [{"image_id": 7, "caption": "x"}]}', "picture 7"),
        ('{"images": []}', "names no pictures"),
        ('{"images": ' + "[" * 100_000, "brackets|ends early"),
    ],
)
def test_what_is_not_cocos_is_said(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "captions_train.json").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_coco(str(tmp_path))


def test_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no captions_\*.json"):
        read_coco(str(tmp_path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=st.dictionaries(st.text(), VALUES, max_size=5), read=st.integers(1, 9), indent=st.sampled_from([None, 1]))
def test_the_stream_gives_what_the_whole_file_holds(value: dict[str, Any], read: int, indent: int | None) -> None:
    """Whatever the size of the pieces: also where one ends within a number or a character."""
    data = json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    expected = [(key, item) for key, items in value.items() if isinstance(items, list) for item in items]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_READ", read)
        assert list(array_elements(io.BytesIO(data))) == expected


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60))
def test_other_bytes_are_an_error(data: bytes) -> None:
    with contextlib.suppress(BadJson, UnicodeDecodeError):
        assert list(array_elements(io.BytesIO(b'{"a": [' + data))) is not None


def test_one_element_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "_MOST", 1000)
    monkeypatch.setattr(json_stream, "_READ", 100)
    with pytest.raises(BadJson, match="longer than 1000"):
        list(array_elements(io.BytesIO(json.dumps({"a": ["x" * 5000]}).encode())))
