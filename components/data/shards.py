"""Shards: webdataset tars whose bytes depend on their samples alone, and their parquet metadata."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa

from components.contracts.manifest import CIRCUMSTANCE
from components.contracts.records import LEDGER_SCHEMA
from components.runtime.storage import sync_file, write_bytes, write_chunks

FETCHES = f"{CIRCUMSTANCE}fetches"  # when and from where rows came: a folder while they come, then one file
_BLOCK = tarfile.BLOCKSIZE
_TAR_BYTES = b"tar_bytes"
_IN_MEMORY = 96 << 20  # bytes of a shard's pictures that are kept in memory; more go to a temporary file


@dataclass(frozen=True)
class Sample:
    """One sample of a shard. ``meta`` is JSON with url, caption, sha256 and sizes (see docs of the ledger)."""

    key: str
    ending: str
    picture: bytes
    meta: dict[str, Any]


def tar_chunks(samples: Iterable[Sample]) -> Iterator[bytes]:
    """The samples as a webdataset tar, piece by piece: ``key.jpg|png|…``, ``key.txt``, ``key.json``; no times, no
    owners. Samples are asked for one at a time."""
    written = 0
    for sample in samples:
        caption = str(sample.meta["caption"] or "").encode()
        meta = json.dumps(sample.meta, sort_keys=True, ensure_ascii=False).encode()
        for ending, data in ((sample.ending, sample.picture), ("txt", caption), ("json", meta)):
            yield _header(f"{sample.key}.{ending}", len(data))
            yield data
            yield bytes(-len(data) % _BLOCK)
            written += _BLOCK + len(data) + -len(data) % _BLOCK
    yield bytes(2 * _BLOCK)  # the end, and then up to a whole record
    yield bytes(-(written + 2 * _BLOCK) % tarfile.RECORDSIZE)


def _plain_header() -> bytes:
    info = tarfile.TarInfo()
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


_HEADER = _plain_header()


def _header(name: str, size: int) -> bytes:
    """A member's header: the standard library's, which takes a tenth of a millisecond, with name, size and sum."""
    field = name.encode("ascii").ljust(100, b"\0")
    assert len(field) == 100 and size < 8**11, f"{name} of {size} bytes does not fit into a tar"
    parts = field, _HEADER[100:124], b"%011o\0" % size, _HEADER[136:148], b" " * 8, _HEADER[156:]
    total = sum(map(sum, parts))  # POSIX: of all bytes, those of the sum itself taken as spaces
    return b"".join((*parts[:4], b"%06o\0 " % total, parts[5]))


def tar_bytes(samples: Iterable[Sample]) -> bytes:
    """:func:`tar_chunks` in one piece."""
    return b"".join(tar_chunks(samples))


def read_tar(data: bytes | Path) -> Iterator[Sample]:
    """The samples of a shard, in order, from its bytes or its file.

    Raises:
        tarfile.TarError, ValueError: the shard is damaged.
    """
    source: IO[bytes] = io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")
    with source, tarfile.open(fileobj=source, mode="r:") as tar:
        ending, picture = "", b""
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it remembers every header that it has read
            file = tar.extractfile(member)
            assert file is not None, f"{member.name} is not a file"
            key, _, part = member.name.rpartition(".")
            if part == "json":
                yield Sample(key, ending, picture, json.loads(file.read()))
            elif part != "txt":
                ending, picture = part, file.read()


class Pictures:
    """Pictures of a shard that is being fetched: in memory up to a bound, beyond it in a temporary file.

    Not for several threads at once.
    """

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self._left = in_memory
        self._file: IO[bytes] | None = None

    def put(self, picture: bytes) -> bytes | slice:
        """Keep a picture; what is given back stands for it.

        Raises:
            OSError: no room is left for temporary files.
        """
        if len(picture) <= self._left:
            self._left -= len(picture)
            return picture
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="atelier-pictures-")  # noqa: SIM115, closed by close()
        start = self._file.seek(0, io.SEEK_END)
        self._file.write(picture)
        return slice(start, start + len(picture))

    def get(self, kept: bytes | slice) -> bytes:
        """The picture that ``kept`` stands for."""
        if isinstance(kept, bytes):
            return kept
        assert self._file is not None, "nothing was written"
        self._file.seek(kept.start)
        return self._file.read(kept.stop - kept.start)

    def close(self) -> None:
        """Give the temporary file back."""
        if self._file is not None:
            self._file.close()


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as parquet; equal tables give equal bytes, however they are cut into chunks."""
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(table.combine_chunks(), out, compression="zstd")
    return out.getvalue()


def read_parquet(url: str, schema: pa.Schema) -> pa.Table:
    """The table at ``url`` (any fsspec URL or path), which must have this schema.

    Raises:
        FileNotFoundError: there is none.
    """
    import pyarrow.parquet as pq

    fs, path = fsspec.core.url_to_fs(url)
    return pq.read_table(pa.BufferReader(fs.cat_file(path)), schema=schema).replace_schema_metadata(None)


def ledger_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Ledger rows as a table of ``LEDGER_SCHEMA``."""
    return pa.Table.from_pylist(list(rows), schema=LEDGER_SCHEMA)


def write_shard(folder: str, name: str, samples: Iterable[Sample], ledger: pa.Table, fetches: pa.Table) -> None:
    """Write a shard that was fetched: ``shards/{name}.tar``, and its ledger and circumstances beside each other below
    ``circumstance/fetches``. It counts once :func:`accept_shard` has been called.

    Args:
        folder: fsspec URL or path of the artifact being made.

    Raises:
        StoreFullError: no room is left.
    """
    size = write_chunks(f"{folder}/shards/{name}.tar", tar_chunks(samples), sync=False)
    noted = fetches.replace_schema_metadata({_TAR_BYTES: str(size)})
    write_bytes(f"{folder}/{FETCHES}/{name}.parquet", parquet_bytes(noted))
    write_bytes(f"{folder}/{FETCHES}/{name}.ledger", parquet_bytes(ledger))


def accept_shard(folder: str, name: str) -> None:
    """Write ``shards/{name}.parquet``, the sign that all of a shard is there and to be kept.

    This is for the process that gave the work out. A worker that outlives it for some seconds may find that nothing
    answers any more, a site that ended with it for one, and what it then writes must not be taken for the shard.

    Raises:
        StoreFullError: no room is left.
    """
    sync_file(f"{folder}/shards/{name}.tar")
    fs, path = fsspec.core.url_to_fs(f"{folder}/{FETCHES}/{name}.ledger")
    write_bytes(f"{folder}/shards/{name}.parquet", fs.cat_file(path))


def is_whole(folder: str, name: str) -> bool:
    """Whether the tar that :func:`write_shard` wrote is as long as it was, also after a power failure."""
    import pyarrow.parquet as pq

    fs, path = fsspec.core.url_to_fs(folder)
    try:
        noted = fs.cat_file(f"{path}/{FETCHES}/{name}.parquet")
    except FileNotFoundError:  # gathered into one file, which is done when all tars are on the disk
        return True
    metadata = pq.read_schema(pa.BufferReader(noted)).metadata or {}
    return bool(int(metadata[_TAR_BYTES]) == fs.size(f"{path}/shards/{name}.tar"))
