"""URL lists in all their formats, and what is said of bad ones."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


# -- every format, packed and not


def packed(data: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    return pa.Codec("zstd").compress(data, asbytes=True) if name.endswith(".zst") else data


def as_text(kind: str, rows: list[tuple[str, str | None]]) -> str:
    if kind in ("jsonl", "ndjson"):
        return "".join(json.dumps({"url": u, "caption": c}) + "\n" for u, c in rows)
    if kind == "json":
        return json.dumps([{"url": u, "caption": c} for u, c in rows])
    if kind == "txt":
        return "".join(f"{u}\t{c}\n" for u, c in rows)
    out = io.StringIO()
    csv.writer(out, delimiter="\t" if kind == "tsv" else ",").writerows([("url", "caption"), *rows])
    return out.getvalue()


captions = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
urls = st.from_regex(r"https?://[a-z]{1,9}\.example/[a-z0-9/%?=&äß]{0,20}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(urls, captions), min_size=1, max_size=5),
    st.sampled_from(["csv", "tsv", "jsonl", "ndjson", "json"]),
    st.sampled_from(["", ".gz", ".zst"]),
    st.booleans(),
)
def test_whatever_is_written_is_read(rows: list[tuple[str, str]], kind: str, codec: str, mark: bool) -> None:
    name = f"memory://lists/any.{kind}{codec}"
    with fsspec.open(name, "wb") as file:
        file.write(packed((b"\xef\xbb\xbf" if mark else b"") + as_text(kind, rows).encode(), name))
    table = read_list(name)
    assert table.schema == LIST_SCHEMA
    assert list(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)) == rows


def put(path: Path, data: str | bytes) -> str:
    path.write_bytes(packed(data.encode() if isinstance(data, str) else data, path.name))
    return str(path)


@pytest.mark.parametrize("name", ["l.txt", "l.txt.gz", "l.txt.zst"])
def test_plain_lines_are_urls_with_or_without_captions(tmp_path: Path, name: str) -> None:
    text = "\ufeffhttp://a.example/1\r\n\r\nhttp://a.example/2\ta red  star \r\nhttp://a.example/3 two words"
    assert read_list(put(tmp_path / name, text)).to_pylist() == [
        {"url": "http://a.example/1", "caption": ""},
        {"url": "http://a.example/2", "caption": "a red  star"},
        {"url": "http://a.example/3", "caption": "two words"},
    ]


@pytest.mark.parametrize(
    "text",
    ['{"url": ["u1", "u2"], "caption": ["a", null]}',
     '{"url": {"0": "u1", "1": "u2"}, "caption": {"0": "a", "1": null}}',
     '[{"url": "u1", "caption": "a", "n": {}}, {"url": "u2"}]'],
)  # fmt: skip
def test_json_as_an_array_and_as_columns(tmp_path: Path, text: str) -> None:
    assert read_list(put(tmp_path / "l.json", text)).to_pylist() == [
        {"url": "u1", "caption": "a"}, {"url": "u2", "caption": None}
    ]  # fmt: skip


def test_folders_and_patterns_are_read_in_order_whatever_their_formats(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    put(tmp_path / "c.csv.gz", "caption,url\nlast,http://a.example/3\n")
    put(tmp_path / "b" / "x.txt", "http://a.example/2 second")
    put(tmp_path / "a.jsonl", '{"url": "http://a.example/1", "caption": "first"}\n')
    put(tmp_path / ".hidden.csv", "junk")
    put(tmp_path / "README.md", "not a list")
    assert read_list(str(tmp_path))["caption"].to_pylist() == ["first", "second", "last"]
    assert read_list(f"file://{tmp_path}")["caption"].to_pylist() == ["first", "second", "last"]
    assert read_list(f"{tmp_path}/*.*")["caption"].to_pylist() == ["first", "last"]
    assert read_list(f"{tmp_path}/**/x.*")["caption"].to_pylist() == ["second"]
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "c.csv.gz"), "/lists/folder/c.csv.gz")
    pq.write_table(pa.table({"url": ["u"], "caption": ["parquet"]}), tmp_path / "p.parquet")
    fs.put(str(tmp_path / "p.parquet"), "/lists/folder/p.parquet")
    assert read_list("memory://lists/folder")["caption"].to_pylist() == ["last", "parquet"]
    with pytest.raises(InputError, match="no list of a known format; it has 0 other files"):
        read_list(f"{tmp_path}/*.parquets")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "url,caption\nu,a\nu,b,c\n", "line 3 has 3 fields, the header has 2"),
        ("l.tsv", "url\tcaption\n\nu\n", "line 3 has 1 fields"),
        ("l.csv", 'url,caption\nu,"a\nb"x\n', "line 3: "),
        ("l.csv", 'url,caption\nu,"never closed\n' + "more\n" * 40_000, "field larger than"),
        ("l.csv", b"url,caption\nu,caf\xe9\n", r"not UTF-8 \(byte 0xe9\)"),
        ("l.jsonl", '{"url": "u", "caption": "a"}\n{"url": "u", \n', "line 2 is not JSON"),
        ("l.jsonl", '{"url": "u", "caption": "a"}\n\n[1]\n', "line 3 is not an object"),
        ("l.jsonl", '{"url": "u", "caption": ["a"]}\n', "line 1: 'caption' is not text"),
        ("l.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("l.json", '{"url": ["u"], "caption": ["a", "b"]}', "1 and 2 values"),
        ("l.json", "7", "neither an array of objects nor an object of columns"),
        ("l.txt", "x" * (1 << 24) + "y", "line 1 is longer than"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_list(put(tmp_path / name, text))
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["l.csv.gz", "l.jsonl.zst"])
def test_a_packed_file_that_ends_early_is_refused(tmp_path: Path, name: str) -> None:
    rows = [(f"http://a.example/{i * 7919 % 10007}", f"caption {i}") for i in range(3000)]
    path = tmp_path / name
    put(path, as_text(name.split(".")[1], rows))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be read as"):
        read_list(str(path))


@pytest.mark.parametrize(
    ("header", "meant"), [("URL,caption", "=URL"), ("image_url,caption", "=image_url"), ("url,TEXT", "=TEXT"),
                          ("link,src,caption", "=NAME"), ("a,b", "=NAME")]
)  # fmt: skip
def test_a_usual_name_is_proposed_where_it_is_the_only_one(tmp_path: Path, header: str, meant: str) -> None:
    comma = header.count(",")
    for name, text in (
        ("l.csv", header + "\n" + "," * comma + "\n"),
        ("l.jsonl", json.dumps(dict.fromkeys(header.split(","), "x"))),
        ("l.json", json.dumps({name: ["x"] for name in header.split(",")})),
    ):
        with pytest.raises(InputError, match=f"has no column '(url|caption)'.*collect\\.(url|caption)_column{meant}"):
            read_list(put(tmp_path / name, text))


def test_large_text_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    line = "http://a.example/0," + "x" * 200 + "\n"
    path = put(tmp_path / "l.csv.gz", "url,caption\n" + line * 100_000)
    tracemalloc.start()
    assert read_list(path).num_rows == 100_000  # 22 MB of text, in Arrow's memory, which is not counted here
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 45_000_000  # a batch of rows as Python's strings
