"""Lists of what is to be taken down."""

from __future__ import annotations

import io
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.errors import InputError
from components.data.takedown import rule
from components.data.takedown_list import read_rules

DIGEST = "ab" * 32
WANTED = [rule("url", "https://a.test/1.png"), rule("sha256", DIGEST), rule("host", "b.test")]


def parquet(**columns: list[str | None]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


LISTS = {
    "list.txt": f"# taken down\r\nhttps://a.test/1.png\r\n\r\n{DIGEST}\nb.test\nb.test\n".encode(),
    "bom.txt": b"\xef\xbb\xbf" + f"https://a.test/1.png\n{DIGEST}\nb.test".encode(),
    "list.csv": f'note,url,sha256,host\n"x, y",https://a.test/1.png,,\n,,{DIGEST.upper()},b.test\n'.encode(),
    "list.tsv": f"url\tsha256\thost\nhttps://a.test/1.png\t{DIGEST}\tb.test\n".encode(),
    "list.jsonl": f'{{"url": "https://a.test/1.png"}}\n\n{{"sha256": "{DIGEST}", "host": "b.test", "x": 1}}'.encode(),
    "list.parquet": parquet(url=["https://a.test/1.png", None], sha256=[DIGEST, None], host=[None, "b.test"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_formats(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LISTS[name])
    assert read_rules(str(tmp_path / name)) == WANTED


def test_of_a_store() -> None:
    fsspec.filesystem("memory").pipe_file("/lists/a.txt", b"b.test")
    assert read_rules("memory://lists/a.txt") == ["host:b.test"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "holds no rule"),
        ("a.txt", b"# nothing\n", "holds no rule"),
        ("a.txt", b"a.test\nwhat is this\n", "line 2.*no host name"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as txt"),
        ("a.csv", b"link\nhttps://a.test/\n", "no column url, sha256, host"),
        ("a.csv", b"url\nhttps://a.test/\n\"broken\n", "cannot be read as csv"),
        ("a.csv", b"sha256\nabc\n", "line 2.*no SHA-256"),
        ("a.jsonl", b'{"url": "https://a.test/"}\n{', "cannot be read as jsonl"),
        ("a.jsonl", b"[1]", "line 1 is no object"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.parquet", parquet(link=["x"]), "no column"),
        ("a.xlsx", b"x", "format that is not known"),
    ],
)  # fmt: skip
def test_wrong_lists(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_rules(str(tmp_path / name))


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_rules(str(tmp_path / "none.txt"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_rules(str(tmp_path / "folder.csv"))
    with pytest.raises(InputError, match="cannot be read"):
        read_rules("nosuchscheme://x/a.txt")


@given(st.binary(max_size=200), st.sampled_from([".txt", ".csv", ".tsv", ".jsonl", ".parquet"]))
def test_any_bytes_end_well(data: bytes, ending: str) -> None:
    fsspec.filesystem("memory").pipe_file(f"/any/list{ending}", data)
    try:
        assert read_rules(f"memory://any/list{ending}")
    except InputError as error:
        assert str(error)
