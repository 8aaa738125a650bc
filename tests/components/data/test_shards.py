"""Shards: bytes that depend on the samples alone, read back as written, bounded in memory."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.records import FETCHES_SCHEMA, LEDGER_SCHEMA
from components.data.shards import (
    Pictures,
    Sample,
    accept_shard,
    is_whole,
    parquet_bytes,
    read_parquet,
    read_tar,
    tar_bytes,
    write_shard,
)


def sample(row: int, picture: bytes, caption: str | None = "a cat", ending: str = "jpg") -> Sample:
    return Sample(f"{row:09d}", ending, picture, {"row": row, "caption": caption, "url": "http://x/ü"})


def reference(samples: list[Sample]) -> bytes:
    """The same tar as the standard library writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one in samples:
            meta = json.dumps(one.meta, sort_keys=True, ensure_ascii=False).encode()
            caption = str(one.meta["caption"] or "").encode()
            for ending, data in ((one.ending, one.picture), ("txt", caption), ("json", meta)):
                info = tarfile.TarInfo(f"{one.key}.{ending}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@given(st.lists(st.tuples(st.binary(max_size=2000), st.none() | st.text(max_size=30)), max_size=6))
def test_a_shard_is_a_tar_and_reads_back(parts: list[tuple[bytes, str | None]]) -> None:
    samples = [sample(n, picture, caption, "png") for n, (picture, caption) in enumerate(parts)]
    data = tar_bytes(samples)
    assert data == reference(samples)
    assert list(read_tar(data)) == samples


def test_a_shard_is_read_from_its_file(tmp_path: Path) -> None:
    samples = [sample(n, bytes([n]) * 700) for n in range(5)]
    (tmp_path / "x.tar").write_bytes(tar_bytes(samples))
    assert list(read_tar(tmp_path / "x.tar")) == samples


def test_a_damaged_shard_is_an_error() -> None:
    whole = tar_bytes([sample(0, b"x" * 2000), sample(1, b"y" * 2000)])
    for damaged in (whole[:1500], b"\x01" * 512 + whole[512:]):
        with pytest.raises((tarfile.TarError, ValueError)):
            list(read_tar(damaged))


def test_pictures_beyond_the_bound_lie_in_a_file() -> None:
    pictures = Pictures(in_memory=1000)
    given_in = [bytes([n]) * 300 for n in range(12)]
    kept = [pictures.put(picture) for picture in given_in]
    assert [type(k) for k in kept] == [bytes] * 3 + [slice] * 9
    assert [pictures.get(k) for k in reversed(kept)] == given_in[::-1]
    assert pictures.get(pictures.put(b"late" * 90)) == b"late" * 90
    pictures.close()


def test_a_small_picture_still_fits_after_a_large_one_did_not() -> None:
    pictures = Pictures(in_memory=100)
    assert isinstance(pictures.put(b"x" * 101), slice)
    assert pictures.put(b"y" * 100) == b"y" * 100
    pictures.close()


def test_parquet_bytes_do_not_depend_on_chunks() -> None:
    table = pa.table({"a": pa.array(["x", None, "y"] * 50), "b": list(range(150))})
    cut = pa.concat_tables([table.slice(0, 7), table.slice(7, 100), table.slice(107)])
    assert parquet_bytes(table) == parquet_bytes(cut)


def test_the_ledger_part_comes_last(tmp_path: Path) -> None:
    """Whoever finds it finds the whole shard."""
    ledger, fetches = LEDGER_SCHEMA.empty_table(), FETCHES_SCHEMA.empty_table()
    samples = iter([sample(0, b"x")])
    write_shard(str(tmp_path / "a"), "00000", samples, ledger, fetches)
    files = {str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file()}
    beside = {"circumstance/fetches/00000.parquet", "circumstance/fetches/00000.ledger"}
    assert files == {"shards/00000.tar"} | beside, "whoever gave the work out has not accepted it"
    accept_shard(str(tmp_path / "a"), "00000")
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a" / "shards").iterdir()}
    assert times["00000.tar"] < times["00000.parquet"]
    assert read_parquet(f"{tmp_path}/a/shards/00000.parquet", LEDGER_SCHEMA).schema.equals(LEDGER_SCHEMA)
    assert pq.read_table(tmp_path / "a" / "circumstance" / "fetches" / "00000.parquet").schema.equals(FETCHES_SCHEMA)


def test_a_shard_whose_pictures_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    def samples() -> Iterator[Sample]:
        yield sample(0, b"x")
        raise OSError(5, "the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_shard(str(tmp_path), "00000", samples(), LEDGER_SCHEMA.empty_table(), FETCHES_SCHEMA.empty_table())
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_tar_that_never_got_to_the_disk_is_seen(tmp_path: Path) -> None:
    """After a power failure a file may be shorter than what was written."""
    write_shard(
        str(tmp_path), "00000", [sample(0, b"x" * 5000)], LEDGER_SCHEMA.empty_table(), FETCHES_SCHEMA.empty_table()
    )
    assert is_whole(str(tmp_path), "00000")
    tar = tmp_path / "shards" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert not is_whole(str(tmp_path), "00000")


def test_a_name_that_does_not_fit_into_a_tar_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="does not fit"):
        tar_bytes([Sample("9" * 120, "jpg", b"", {"caption": ""})])
