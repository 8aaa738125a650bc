"""URL lists in all their formats, and what is said of bad ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import InputError
from components.data.lists import LIST_SCHEMA, read_list

ROWS = [
    ("http://a.example/1.jpg", "a red star"),
    ("http://a.example/2.jpg", 'a "blue",\nsquare'),
    ("http://a.example/3.jpg", "null"),
]


def write(path: Path) -> Path:
    names = [n for n in path.name.split(".")[1:] if n != "gz"]
    if names == ["parquet"]:
        pq.write_table(pa.table({"caption": [c for _, c in ROWS], "url": [u for u, _ in ROWS], "n": [1, 2, 3]}), path)
        return path
    if names == ["jsonl"]:
        text = "".join(json.dumps({"url": u, "caption": c, "extra": 1}) + "\n" for u, c in ROWS)
    else:
        comma = "\t" if names == ["tsv"] else ","
        lines = [comma.join(["url", "caption"])]
        for url, caption in ROWS:
            quoted = '"' + caption.replace('"', '""') + '"'
            lines.append(comma.join([url, quoted]))
        text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["l.parquet", "l.csv", "l.tsv", "l.jsonl", "l.csv.gz", "l.jsonl.gz"])
def test_every_format_gives_the_same_table(tmp_path: Path, name: str) -> None:
    table = read_list(str(write(tmp_path / name)))
    assert table.schema == LIST_SCHEMA
    assert list(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)) == ROWS


def test_fsspec_urls_are_read() -> None:
    import fsspec

    with fsspec.open("memory://lists/l.csv", "wb") as file:
        file.write(b"link,text\nhttp://a.example/1.jpg,a star\n")
    assert read_list("memory://lists/l.csv", "link", "text").to_pylist() == [
        {"url": "http://a.example/1.jpg", "caption": "a star"}
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.parquet does not exist"):
        read_list(str(tmp_path / "nowhere.parquet"))


@pytest.mark.parametrize("name", ["bad.parquet", "bad.jsonl", "bad.csv.gz"])
def test_an_unreadable_file_is_named_with_its_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\x01 this is nothing of the kind {")
    with pytest.raises(InputError, match="cannot be read as") as error:
        read_list(str(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.docx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.parquet, \.csv, \.tsv"):
        read_list(str(tmp_path / "list.docx"))


def test_missing_columns_are_named_with_those_found(tmp_path: Path) -> None:
    path = write(tmp_path / "l.parquet")
    with pytest.raises(InputError, match=r"no column 'text'; it has 'caption', 'url', 'n'.*collect\.caption_column"):
        read_list(str(path), caption_column="text")
    with pytest.raises(InputError, match=r"no column 'link'.*collect\.url_column"):
        read_list(str(path), url_column="link")


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    pq.write_table(LIST_SCHEMA.empty_table(), tmp_path / "l.parquet")
    with pytest.raises(InputError, match="has no rows"):
        read_list(str(tmp_path / "l.parquet"))
    (tmp_path / "l.csv").write_bytes(b"")
    with pytest.raises(InputError):
        read_list(str(tmp_path / "l.csv"))


def test_columns_that_are_not_text_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": [[1], [2]], "caption": ["a", "b"]}), tmp_path / "l.parquet")
    with pytest.raises(InputError, match="not text"):
        read_list(str(tmp_path / "l.parquet"))
