"""img2dataset, driven one shard at a time: the only module that imports it.

Its ``Downloader`` keeps the pool of threads and the flow from URL to sample; what it fetches with (the
opener of ``urllib``), what it resizes with and what it writes with are ours. Faults of its own that are
thereby out of play: unchecked addresses and redirects, reads without bounds, pictures decoded before their
size is known, statuses thrown away, shards written in pieces. The URLs and bodies that it sees are numbers: we
look up what they stand for, so that files and URLs of any form come through, in an order that is fair to hosts.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from components.contracts.recipe import Collect
from components.contracts.records import FETCHES_SCHEMA, LEDGER_SCHEMA, CollectReason
from components.data.bodies import Lease
from components.data.decoding import Box
from components.data.fetching import Answer, Fetch
from components.data.guard import Refusal
from components.data.pictures import Picture, box_of, normalise
from components.data.shards import Pictures, Sample
from components.data.takedown import Blocklist
from components.data.turns import Turns

_ROW = struct.Struct(">q")  # goes through the engine in place of every body, so that the resizer knows its row
_REPORT_S = 1.0


class Source(Protocol):
    """Where pictures come from: :class:`~components.data.fetching.Fetcher` or
    :class:`~components.data.reading.FileReader`. Called from several threads at once."""

    def fetch(self, url: str) -> Answer:
        """The body at ``url``; raises :class:`Refusal`."""
        ...

    def close(self) -> None:
        """Give back connections and open files."""
        ...


@dataclass
class _Fate:
    """What became of one row so far."""

    refusal: Refusal | None = None
    answer: _Known | None = None
    picture: Picture | None = None
    lease: Lease | None = None  # of the memory of its body
    box: Box | None = None  # what of it is kept
    body: bytes = b""  # between the thread that fetched it and the resizer
    kept: bytes | slice = b""
    written: bool = False

    def let_go(self) -> None:
        """Its body is no longer in memory."""
        self.body = b""
        if self.lease is not None:
            self.lease.release()


@dataclass(frozen=True)
class _Known:
    """Of an answer all but its body."""

    http_status: int | None
    attempts: int
    opt_out: str | None
    received: int
    sha256: str
    fetch: Fetch | None


@dataclass
class Shard:
    """Rows while they are fetched, and afterwards what became of them.

    Args:
        name: five digits, the name of its files.
        rows: positions in the list; ``urls`` and ``captions`` run beside it. No URL is taken as an empty one.
        blocked: what was taken down and is not fetched again.
        report: called with the number of rows that are done, about once a second.
    """

    name: str
    rows: Sequence[int]
    urls: Sequence[str | None]
    captions: Sequence[str | None]
    limits: Collect
    blocked: Blocklist
    report: Callable[[int], None] = lambda done: None
    _fates: list[_Fate] = field(default_factory=list)
    _at_slot: dict[int, int] = field(default_factory=dict)  # of the engine's numbers: our positions
    _pictures: Pictures = field(default_factory=Pictures)
    _fault: BaseException | None = None
    _done: int = 0
    _reported: float = 0.0

    def fetch(self, source: Source, threads: int) -> None:
        """Fetch every row.

        Raises:
            OSError: no room is left for temporary files.
            RuntimeError: the engine lost a row, which is a fault of the program.
        """
        self._fates = [_Fate() for _ in self.rows]
        turns = Turns([url or "" for url in self.urls])
        urllib.request.install_opener(_Opener(source, self, turns))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory(prefix="atelier-shard-") as folder:
            slots = Path(folder) / "slots.arrow"
            numbers = list(range(len(self.rows)))
            table = pa.table({"url": [f"http://row.invalid/{n}" for n in numbers], "slot": numbers})
            with pa.OSFile(str(slots), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            _engine().Downloader(
                sample_writer_class=lambda *_: _Writer(self),
                resizer=self._resize,
                thread_count=max(1, min(threads, len(numbers))),
                save_caption=False,
                extract_exif=False,
                output_folder=folder,
                column_list=["url", "slot"],
                timeout=self.limits.timeout_s,
                number_sample_per_shard=max(len(numbers), 2),
                oom_shard_count=5,
                compute_hash=None,
                verify_hash_type=None,
                encode_format="jpg",
                retries=0,  # the fetcher knows which failures are worth it
                user_agent_token=None,
                disallowed_header_directives=None,  # the fetcher reads X-Robots-Tag
            ).download_shard((0, str(slots)))
        if self._fault is not None:  # the engine goes on after anything that is raised in it
            raise self._fault
        lost = [row for row, fate in zip(self.rows, self._fates, strict=True) if not fate.written]
        if lost:
            raise RuntimeError(f"the fetch engine lost {len(lost)} rows of shard {self.name}, first {lost[0]}")

    def samples(self) -> Iterator[Sample]:
        """The pictures that came, in the order of ``rows``."""
        for row, fate, caption, url in zip(self.rows, self._fates, self.captions, self.urls, strict=True):
            if (picture := fate.picture) is not None and fate.answer is not None:
                key = f"{row:09d}"
                meta = {"key": key, "row": row, "url": url, "caption": caption, "sha256": fate.answer.sha256,
                        "original_width": picture.original_width, "original_height": picture.original_height,
                        "width": picture.width, "height": picture.height, "quality": picture.quality}  # fmt: skip
                yield Sample(key, picture.ending, self._pictures.get(fate.kept), meta)

    def ledger(self) -> pa.Table:
        """What became of every row, in the order of ``rows``; ``LEDGER_SCHEMA``."""
        entries = []
        for row, fate, caption, url in zip(self.rows, self._fates, self.captions, self.urls, strict=True):
            entry: dict[str, Any] = {"row": row, "url": url or "", "caption": caption}
            if fate.answer is not None:
                known = fate.answer
                entry |= {"attempts": known.attempts, "http_status": known.http_status, "bytes": known.received,
                          "opt_out": known.opt_out}  # fmt: skip
            if (refusal := fate.refusal) is not None:
                entry |= {"status": "failed", "reason": str(refusal.reason), "detail": refusal.detail}
                if fate.answer is None:
                    entry |= {"attempts": refusal.attempts, "http_status": refusal.http_status,
                              "bytes": refusal.received, "opt_out": refusal.opt_out}  # fmt: skip
                if refusal.reason is CollectReason.TAKEN_DOWN:  # and nothing more is said of it
                    entry = {name: entry[name] for name in ("row", "status", "reason", "detail")}
                    entry |= {"attempts": 0, "bytes": 0}
            else:
                picture = fate.picture
                assert picture is not None and fate.answer is not None, f"row {row} has no fate"
                entry |= {"status": "success", "sha256": fate.answer.sha256, "width": picture.original_width,
                          "height": picture.original_height, "quality": picture.quality, "shard": self.name,
                          "key": f"{row:09d}"}  # fmt: skip
            entries.append(entry)
        return pa.Table.from_pylist(entries, schema=LEDGER_SCHEMA)

    def fetches(self) -> pa.Table:
        """When and from where every row came, in the order of ``rows``; ``FETCHES_SCHEMA``."""
        entries = []
        for row, fate in zip(self.rows, self._fates, strict=True):
            source = fate.answer or fate.refusal
            fetch = source.fetch if source is not None else None
            gone = fate.refusal is not None and fate.refusal.reason is CollectReason.TAKEN_DOWN
            entries.append({"row": row} if fetch is None or gone else {"row": row, **vars(fetch)})
        return pa.Table.from_pylist(entries, schema=FETCHES_SCHEMA)

    def close(self) -> None:
        """Give back what the pictures took."""
        self._pictures.close()

    # -- called by the engine

    def _open(self, source: Source, position: int) -> _Answer:
        """In one of the engine's threads."""
        if self._fault is not None:
            raise self._fault
        fate, url = self._fates[position], self.urls[position] or ""
        try:
            if self.blocked.blocks(url=url):
                raise _taken_down()
            answer = source.fetch(url)
            fate.lease = answer.lease
            fate.answer = _Known(answer.http_status, answer.attempts, answer.opt_out, len(answer.body),
                                 answer.sha256, answer.fetch)  # fmt: skip
            final = answer.fetch.final_url if answer.fetch is not None else None
            if self.blocked.blocks(url=final, sha256=fate.answer.sha256):
                raise _taken_down()
        except Refusal as refusal:
            fate.refusal = refusal.bare()  # not the bodies in its traceback
            raise
        except BaseException as error:
            self._fault = error
            raise
        fate.body, fate.box = answer.body, box_of(url) if self.limits.crop else None
        return _Answer(_ROW.pack(position))

    def _resize(self, stream: io.BytesIO, _boxes: object) -> tuple[Any, ...]:
        """The engine's resizer: (bytes, width, height, original width, original height, error)."""
        fate = self._fates[_ROW.unpack(stream.read())[0]]
        try:
            picture = normalise(fate.body, self.limits, fate.box)
            fate.kept = self._pictures.put(picture.data)
        except Refusal as refusal:
            fate.refusal = refusal.bare()  # not the bodies in its traceback
            return None, None, None, None, None, refusal.detail
        except BaseException as error:
            self._fault = error
            raise
        finally:
            fate.let_go()
        fate.picture = replace(picture, data=b"")  # or it would be in memory for as long as the shard
        return b"", picture.width, picture.height, picture.original_width, picture.original_height, None

    def _written(self, slot: int, error: str | None) -> None:
        fate = self._fates[self._at_slot[slot]]
        if error is not None and fate.refusal is None and self._fault is None:
            self._fault = RuntimeError(f"row {self.rows[self._at_slot[slot]]}: {error}")
        fate.let_go()
        fate.written = True
        self._done += 1
        if time.monotonic() - self._reported > _REPORT_S:
            self._reported = time.monotonic()
            self.report(self._done)


def _taken_down() -> Refusal:
    return Refusal(CollectReason.TAKEN_DOWN, "on the takedown list of this store")


class _Writer:
    """The engine's sample writer: notes that the row came through; shards are written whole at the end."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def write(self, _picture: bytes | None, _key: str, _caption: str | None, meta: dict[str, Any]) -> None:
        self._shard._written(meta["slot"], meta["error_message"])

    def close(self) -> None:
        """Nothing is open."""


class _Opener:
    """What ``urllib.request.urlopen`` calls in this process: every fetch goes through the guarded client."""

    def __init__(self, source: Source, shard: Shard, turns: Turns) -> None:
        self._source, self._shard, self._turns = source, shard, turns

    def open(self, request: urllib.request.Request, _data: object = None, _timeout: object = None) -> _Answer:
        position = self._turns.take()
        self._shard._at_slot[int(request.full_url.rpartition("/")[2])] = position
        try:
            return self._shard._open(self._source, position)
        finally:
            self._turns.done(position)


class _Answer:
    """As much of an HTTP response as the engine reads."""

    headers = Message()

    def __init__(self, row: bytes) -> None:
        self._row = row

    def read(self) -> bytes:
        return self._row

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


def _engine() -> Any:
    """``img2dataset.downloader`` without what takes a second of every worker's start and serves nothing here: the
    package's ``__init__``, which imports its command line, and ``wandb``, which its logger imports."""
    name, unused = "img2dataset", "wandb"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations, "img2dataset is pinned in constraints.txt"
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules[name] = package
    left_out = unused not in sys.modules
    if left_out:
        sys.modules[unused] = types.ModuleType(unused)
    try:
        from img2dataset import downloader
    finally:
        if left_out:
            del sys.modules[unused]
    return downloader
