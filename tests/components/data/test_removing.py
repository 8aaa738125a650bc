"""Rewriting tars and tables without some samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import ArtifactError
from components.data.removing import HIDDEN, OnDemand, Texts, rewritten, tar_without, without
from components.data.shards import Sample, tar_bytes


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=1500), st.booleans()), max_size=8))
def test_tar_as_if_it_had_never_held_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[bytes, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    samples = [Sample(f"{i:09d}", "png", data, {"caption": f"ä {i}", "row": i}) for i, (data, _) in enumerate(rows)]
    (folder / "a.tar").write_bytes(tar_bytes(samples))
    gone = frozenset(s.key for s, (_, goes) in zip(samples, rows, strict=True) if goes)
    done = tar_without(str(folder / "a.tar"), gone, folder / "b.tar").read_bytes()
    assert done == tar_bytes([s for s in samples if s.key not in gone])


def test_damaged_tar(tmp_path: Path) -> None:
    whole = tar_bytes([Sample(f"{i:09d}", "png", bytes(3000), {"caption": ""}) for i in range(3)])
    for cut in (700, 2000, 5000):
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        with pytest.raises(ArtifactError, match="damaged"):
            tar_without(str(tmp_path / "a.tar"), frozenset({"none"}), tmp_path / "b.tar")


def test_row_groups_schema_and_compression_stay(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int64()), ("s", pa.list_(pa.string()))], metadata={"made": "here"})
    table = pa.table({"n": list(range(10)), "s": [[str(i)] for i in range(10)]}, schema=schema)
    pq.write_table(table, tmp_path / "a.parquet", compression="gzip", row_group_size=4)
    gone = without(lambda t: np.isin(t["n"].to_numpy(), [0, 8, 9]))
    with pq.ParquetFile(rewritten(str(tmp_path / "a.parquet"), tmp_path / "b" / "c.parquet", gone)) as file:
        assert file.schema_arrow.equals(pq.read_schema(tmp_path / "a.parquet"), check_metadata=True)
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 4]
        assert file.metadata.row_group(0).column(0).compression == "GZIP"
        assert file.read(use_threads=False).equals(table.slice(1, 7))


def test_table_of_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    done = rewritten(str(tmp_path / "a.parquet"), tmp_path / "b.parquet", without(lambda t: np.zeros(len(t), bool)))
    assert pq.ParquetFile(done).metadata.num_rows == 0


def test_texts() -> None:
    texts = Texts(frozenset({"https://a.test/1.png"}), frozenset({"my face"}))
    assert texts.hidden({"a": ["same as https://a.test/1.png.", "my face", "my face too", 3, None]}) == {
        "a": [f"same as {HIDDEN}", HIDDEN, "my face too", 3, None]
    }
    assert texts.addresses.hidden("my face") == "my face"
    column = pa.chunked_array([["x", None, "my face"]])
    assert texts.told_by(column) and texts.column(column).to_pylist() == ["x", None, HIDDEN]
    assert not texts.told_by(pa.chunked_array([["x", None]]))


def test_files_are_made_one_at_a_time(tmp_path: Path) -> None:
    def making(name: str) -> Path:
        (tmp_path / name).write_text(name)
        return tmp_path / name

    files = OnDemand({name: lambda name=name: making(name) for name in ("a", "b")})  # type: ignore[misc]
    assert list(files) == ["a", "b"] and len(files) == 2 and not list(tmp_path.iterdir())
    for name in files:
        assert files[name] == tmp_path / name
        assert [p.name for p in tmp_path.iterdir()] == [name]
