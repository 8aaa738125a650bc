"""img2dataset, driven one shard at a time: the only module that imports it.

Its ``Downloader`` keeps the pool of threads and the flow from URL to sample; what it fetches with (the
opener of ``urllib``), what it resizes with and what it writes with are ours. Faults of its own that are
thereby out of play: unchecked addresses and redirects, reads without bounds, pictures decoded before their
size is known, statuses thrown away, shards written in pieces.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import tempfile
import time
import types
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.contracts.recipe import Collect
from components.data.fetching import Fetcher
from components.data.guard import Guard, Refusal, target_of
from components.data.pictures import Picture, normalise
from components.data.shards import Sample, ledger_table, parquet_bytes, tar_bytes
from components.runtime.storage import write_bytes

_ROW = struct.Struct(">q")  # goes before every body through the engine, so that the resizer knows its row


@dataclass
class _Fate:
    """What became of one row so far."""

    refusal: Refusal | None = None
    attempts: int = 0
    http_status: int | None = None
    opt_out: str | None = None
    received: int | None = None
    sha256: str | None = None
    picture: Picture | None = None
    written: bool = False


@dataclass
class Shard:
    """One shard's rows while they are fetched; position ``i`` is row ``first_row + i`` of the list.

    Args:
        name: five digits, the name of its files.
        urls: of its rows, nulls as empty text.
        report: called with the number of rows that are done, about once a second.
    """

    name: str
    first_row: int
    urls: list[str]
    captions: list[str | None]
    limits: Collect
    report: Callable[[int], None] = lambda done: None
    _fates: dict[int, _Fate] = field(default_factory=dict)
    _reported: float = 0.0

    def fetch(self, guard: Guard, threads: int, store_url: str) -> None:
        """Fetch every row, then write ``shards/{name}.tar`` and, when that is whole, ``shards/{name}.parquet``.

        Raises:
            StoreFullError: no room is left.
            RuntimeError: the engine lost a row, which is a fault of the program.
        """
        self._fates = {i: _Fate() for i in range(len(self.urls))}
        urllib.request.install_opener(_Opener(Fetcher(self.limits, guard), self))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory(prefix="atelier-shard-") as folder:
            rows = Path(folder) / "rows.arrow"
            # the fragment, which is never sent, tells the opener which row it works for
            marked = [f"{url}#{i}" for i, url in enumerate(self.urls)]
            table = pa.table({"url": marked, "position": list(range(len(marked)))})
            with pa.OSFile(str(rows), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            _engine().Downloader(
                sample_writer_class=lambda *_: _Writer(self),
                resizer=self._resize,
                thread_count=threads,
                save_caption=False,
                extract_exif=False,
                output_folder=folder,
                column_list=["url", "position"],
                timeout=self.limits.timeout_s,
                number_sample_per_shard=max(len(marked), 2),
                oom_shard_count=5,
                compute_hash=None,
                verify_hash_type=None,
                encode_format="jpg",
                retries=0,  # the fetcher knows which failures are worth it
                user_agent_token=None,
                disallowed_header_directives=None,  # the fetcher reads X-Robots-Tag
            ).download_shard((0, str(rows)))
        lost = [i for i, fate in self._fates.items() if not fate.written]
        if lost:
            raise RuntimeError(f"the fetch engine lost {len(lost)} rows of shard {self.name}, first {lost[0]}")
        rows_out, samples = self._results()
        write_bytes(f"{store_url}/shards/{self.name}.tar", tar_bytes(samples))
        write_bytes(f"{store_url}/shards/{self.name}.parquet", parquet_bytes(ledger_table(rows_out)))

    def _open(self, fetcher: Fetcher, position: int) -> _Answer:
        fate = self._fates[position]
        try:
            answer = fetcher.fetch(self.urls[position])
        except Refusal as refusal:
            fate.refusal, fate.attempts = refusal, refusal.attempts
            raise
        fate.attempts, fate.http_status, fate.opt_out = answer.attempts, answer.http_status, answer.opt_out
        fate.received, fate.sha256 = len(answer.body), answer.sha256
        return _Answer(_ROW.pack(position) + answer.body)

    def _resize(self, stream: io.BytesIO, _boxes: object) -> tuple[Any, ...]:
        """The engine's resizer: (bytes, width, height, original width, original height, error)."""
        fate = self._fates[_ROW.unpack(stream.read(_ROW.size))[0]]
        try:
            picture = normalise(stream.read(), self.limits.image_size, self.limits.max_pixels)
        except Refusal as refusal:
            fate.refusal = refusal
            return None, None, None, None, None, refusal.detail
        fate.picture = picture
        return (picture.data, picture.width, picture.height, picture.original_width, picture.original_height, None)

    def _written(self, position: int, error: str | None) -> None:
        fate = self._fates[position]
        if error is not None and fate.refusal is None:
            # urllib itself refused the URL, before the opener saw it; anything else is a fault of ours
            try:
                target_of(self.urls[position])
            except Refusal as refusal:
                fate.refusal = refusal
            else:
                raise RuntimeError(f"row {self.first_row + position}: {error}")
        fate.written = True
        if time.monotonic() - self._reported > 1.0:
            self._reported = time.monotonic()
            self.report(sum(f.written for f in self._fates.values()))

    def _results(self) -> tuple[list[dict[str, Any]], list[Sample]]:
        """Ledger rows and samples, in the order of the list."""
        rows, samples = [], []
        for position, fate in sorted(self._fates.items()):
            row = self.first_row + position
            url, caption, refusal, picture = self.urls[position], self.captions[position], fate.refusal, fate.picture
            key = f"{row:09d}"
            entry: dict[str, Any] = {
                "row": row, "url": url, "caption": caption, "attempts": fate.attempts,
                "http_status": fate.http_status, "bytes": fate.received, "opt_out": fate.opt_out,
            }  # fmt: skip
            if refusal is not None:
                entry |= {"status": "failed", "reason": str(refusal.reason), "detail": refusal.detail}
                entry["http_status"] = fate.http_status or refusal.http_status
                entry["bytes"] = fate.received if fate.received is not None else refusal.received
                entry["opt_out"] = fate.opt_out or refusal.opt_out
            else:
                assert picture is not None and fate.sha256 is not None, f"row {row} has no fate"
                size = {"width": picture.original_width, "height": picture.original_height}
                entry |= {"status": "success", "sha256": fate.sha256, **size, "shard": self.name, "key": key}
                meta = {"key": key, "row": row, "url": url, "caption": caption, "sha256": fate.sha256,
                        "original_width": picture.original_width, "original_height": picture.original_height,
                        "width": picture.width, "height": picture.height}  # fmt: skip
                samples.append(Sample(key, picture.ending, picture.data, meta))
            rows.append(entry)
        return rows, samples


class _Writer:
    """The engine's sample writer: notes that the row came through; shards are written whole at the end."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def write(self, _picture: bytes | None, _key: str, _caption: str | None, meta: dict[str, Any]) -> None:
        self._shard._written(meta["position"], meta["error_message"])

    def close(self) -> None:
        """Nothing is open."""


class _Opener:
    """What ``urllib.request.urlopen`` calls in this process: every fetch goes through the guarded client."""

    def __init__(self, fetcher: Fetcher, shard: Shard) -> None:
        self._fetcher, self._shard = fetcher, shard

    def open(self, request: urllib.request.Request, _data: object = None, _timeout: object = None) -> _Answer:
        return self._shard._open(self._fetcher, int(request.full_url.rpartition("#")[2]))


class _Answer:
    """As much of an HTTP response as the engine reads."""

    headers = Message()

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        return self._data

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._data = b""


def _engine() -> Any:
    """``img2dataset.downloader`` without the package's ``__init__``, which imports its command line and with
    it libraries that take seconds of every worker's start and serve nothing here."""
    name = "img2dataset"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations, "img2dataset is pinned in constraints.txt"
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules[name] = package
    from img2dataset import downloader

    return downloader
