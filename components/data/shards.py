"""Shards: webdataset tars whose bytes depend on their samples alone, and their parquet metadata."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from components.contracts.records import LEDGER_SCHEMA


@dataclass(frozen=True)
class Sample:
    """One sample of a shard. ``meta`` is JSON with url, caption, sha256 and sizes (see docs of the ledger)."""

    key: str
    ending: str
    picture: bytes
    meta: dict[str, Any]


def tar_bytes(samples: Sequence[Sample]) -> bytes:
    """The samples as a webdataset tar: ``key.jpg|png``, ``key.txt``, ``key.json``; no times, no owners."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            caption = str(sample.meta["caption"] or "").encode()
            meta = json.dumps(sample.meta, sort_keys=True, ensure_ascii=False).encode()
            for ending, data in ((sample.ending, sample.picture), ("txt", caption), ("json", meta)):
                info = tarfile.TarInfo(f"{sample.key}.{ending}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read_tar(data: bytes) -> Iterator[Sample]:
    """The samples of a shard's bytes, in order.

    Raises:
        tarfile.TarError, ValueError: the shard is damaged.
    """
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        ending, picture = "", b""
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, f"{member.name} is not a file"
            key, _, part = member.name.rpartition(".")
            if part == "json":
                yield Sample(key, ending, picture, json.loads(file.read()))
            elif part != "txt":
                ending, picture = part, file.read()


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as parquet; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def ledger_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Ledger rows as a table of ``LEDGER_SCHEMA``."""
    return pa.Table.from_pylist(list(rows), schema=LEDGER_SCHEMA)
