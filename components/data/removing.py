"""Rewriting the files of artifacts without some of their rows; every other row stays as it is, byte for byte."""

from __future__ import annotations

import html
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from components.contracts.errors import ArtifactError
from components.contracts.records import CollectReason

_CHUNK = 1 << 20
HIDDEN = "[taken down]"  # in place of a text that stood among others
_KEPT = {
    "status": "failed",
    "reason": str(CollectReason.TAKEN_DOWN),
    "detail": "on the takedown list of this store",
    "attempts": 0,
    "bytes": 0,
}

Mask = npt.NDArray[np.bool_]
Content = bytes | Path | None


class OnDemand(Mapping[str, Content]):
    """Files by name, each made when it is asked for; a made file is removed when the next one is."""

    def __init__(self, makers: Mapping[str, Callable[[], Content]]) -> None:
        self._makers = makers
        self._last: Content = None

    def __getitem__(self, name: str) -> Content:
        if isinstance(self._last, Path):
            self._last.unlink(missing_ok=True)
        self._last = self._makers[name]()
        return self._last

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def parquet(url: str) -> pq.ParquetFile:
    """The parquet file at an fsspec URL or path, open. A remote one is read into memory."""
    fs, path = fsspec.core.url_to_fs(url)
    return pq.ParquetFile(path if isinstance(fs, LocalFileSystem) else pa.BufferReader(fs.cat_file(path)))


def columns(url: str, names: list[str]) -> pa.Table:
    """Those of the columns that the file has."""
    with parquet(url) as file:
        return file.read([n for n in names if n in file.schema_arrow.names], use_threads=False)


def rewritten(url: str, target: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Write the parquet file at ``url`` to ``target`` with ``change`` applied to each of its row groups.

    Schema, compression and row groups stay; of a file only one row group is in memory.
    """
    with parquet(url) as file:
        groups = file.metadata.num_row_groups
        codec = file.metadata.row_group(0).column(0).compression.lower() if groups else "zstd"
        target.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(
            target, file.schema_arrow, compression="none" if codec == "uncompressed" else codec
        ) as out:
            for group in range(groups):
                table = change(file.read_row_group(group, use_threads=False))
                if table.num_rows:
                    out.write_table(table, row_group_size=table.num_rows)
    return target


def without(hits: Callable[[pa.Table], Mask]) -> Callable[[pa.Table], pa.Table]:
    """The change that leaves out the rows that ``hits`` marks."""
    return lambda table: table.filter(pa.array(~hits(table)))


def emptied(hits: Callable[[pa.Table], Mask]) -> Callable[[pa.Table], pa.Table]:
    """The change of a ledger: the rows that ``hits`` marks say that they were taken down, and nothing else."""

    def change(table: pa.Table) -> pa.Table:
        marked = pa.array(hits(table))
        for at, field in enumerate(table.schema):
            if field.name != "row":
                value = pa.scalar(_KEPT.get(field.name), field.type)
                table = table.set_column(at, field, pc.if_else(marked, value, table[field.name]))
        return table

    return change


def tar_without(url: str, keys: frozenset[str], target: Path) -> Path:
    """Write the webdataset tar at ``url`` to ``target`` without the samples of these keys.

    The other members are copied as they lie; of a local tar only a piece of one is in memory.

    Raises:
        ArtifactError: the tar is damaged.
    """
    fs, path = fsspec.core.url_to_fs(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with fs.open(path, "rb") as raw, target.open("wb") as out:
            file = cast(BinaryIO, raw)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it remembers every header that it has read
                    if member.name.partition(".")[0] not in keys:
                        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                        after = file.tell()
                        _copy(file, member.offset, end, out)
                        file.seek(after)
            size = out.tell() + 2 * tarfile.BLOCKSIZE  # two empty blocks end a tar; it is padded to whole records
            out.write(bytes(-(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE - out.tell()))
    except tarfile.TarError as error:
        raise ArtifactError(
            f"{url} is damaged: {error}",
            remedy="delete the folder of that collection and collect it again; what was taken down does not return",
        ) from error
    return target


def _copy(source: BinaryIO, start: int, end: int, target: BinaryIO) -> None:
    source.seek(start)
    while start < end:
        data = source.read(min(_CHUNK, end - start))
        if not data:
            raise tarfile.ReadError("unexpected end of data")
        start += len(data)
        target.write(data)


@dataclass(frozen=True)
class Texts:
    """What no text may say any more: addresses and digests wherever they stand, captions where they are the whole."""

    words: frozenset[str]
    captions: frozenset[str]

    @property
    def addresses(self) -> Texts:
        """Without the captions: for texts in which a short one could be something else."""
        return Texts(self.words, frozenset())

    def hidden(self, value: Any) -> Any:
        """Plain JSON values with all of it replaced by :data:`HIDDEN`."""
        if isinstance(value, str):
            if value in self.captions or value in self.words:
                return HIDDEN
            parts = value.split(" ")
            marked = [HIDDEN if part.strip("\"'.,;:()") in self.words else part for part in parts]
            return value if marked == parts else " ".join(marked)
        if isinstance(value, dict):
            return {key: self.hidden(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.hidden(inner) for inner in value]
        return value

    def said_in(self, page: str) -> bool:
        """Whether a page, HTML or not, holds an address, a digest or a caption of more than a word."""
        return any(n in page or html.escape(n) in page for n in (*self.words, *(c for c in self.captions if " " in c)))

    def column(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """A column of texts likewise."""
        return pa.chunked_array([pa.array([self.hidden(text) for text in column.to_pylist()], column.type)])

    def told_by(self, column: pa.ChunkedArray) -> bool:
        """Whether a column of texts says any of it."""
        return any(self.hidden(text) != text for text in column.to_pylist())
