"""The logbook: one row for every picture served and for every request refused, in parquet.

The rows of the running part stay in memory, and its file is written anew, whole and by atomic rename, at most
a second after a row came in. So there are few files, a reader never sees half of one, and a kill loses a
second.
"""

from __future__ import annotations

import datetime
import io
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.contracts.records import LOGBOOK_SCHEMA
from components.runtime.storage import write_bytes

_log = logging.getLogger("ray.serve")
_MAX_HELD = 100_000  # rows kept in memory while the disk refuses them; beyond it the oldest go


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Entry:
    """A row of ``LOGBOOK_SCHEMA``; see there for the fields. ``prompt`` is None when it was not read."""

    request_id: str
    status: int
    seconds: float
    key_id: str | None = None
    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    model_version: str | None = None
    error: str | None = None
    truncated: bool | None = None
    image_sha256: str | None = None
    image_stats: list[float] | None = None
    style: str | None = None
    time: datetime.datetime = field(default_factory=_now)


def image_stats(pixels: NDArray[np.uint8]) -> list[float]:
    """Mean R, G, B and standard deviation R, G, B of (H, W, 3) pixels, each in 0..1."""
    scaled = pixels.reshape(-1, 3).astype(np.float32) / 255.0
    return [float(v) for v in (*scaled.mean(axis=0), *scaled.std(axis=0))]


class Logbook:
    """Appends entries to rolled parquet files in ``folder``.

    Args:
        folder: made with mode 0700: prompts are personal.
        writer: part of the file names; unique among the writers of one folder.
        max_rows: a part is closed at this size and the next one begun.
        flush_s: how long a row waits at most before it is on disk.
        on_error: called when a write failed (the rows are kept and written later).
    """

    def __init__(
        self,
        folder: Path,
        writer: str,
        *,
        max_rows: int = 2000,
        flush_s: float = 1.0,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder, self._max_rows, self._flush_s, self._on_error = folder, max_rows, flush_s, on_error
        self._name = f"{_now():%Y%m%dT%H%M%S}-{writer}"
        self._part = 0
        self._rows: list[Entry] = []  # of the running part
        self._written = 0  # how many of them are on disk
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self.error: str | None = None  # why the last write failed; None when it worked
        self._thread = threading.Thread(target=self._keep_flushing, name="logbook", daemon=True)
        self._thread.start()

    def append(self, *entries: Entry) -> None:
        """Add rows; they are on disk within ``flush_s``."""
        with self._lock:
            self._rows.extend(entries)
            if (extra := len(self._rows) - _MAX_HELD) > 0:
                del self._rows[:extra]
                self._written = max(0, self._written - extra)

    def flush(self) -> None:
        """Return when every row appended so far is on disk.

        Raises:
            StoreFullError, OSError: the disk refused; the rows are kept for the next flush.
        """
        with self._writing:
            with self._lock:
                rows = list(self._rows)
                if len(rows) == self._written:
                    return
            try:
                write_bytes(str(self._folder / f"{self._name}-{self._part:05d}.parquet"), _parquet(rows))
            except Exception as error:
                self.error = str(error)
                self._on_error()
                raise
            self.error = None
            with self._lock:
                self._written = len(rows)
                if len(rows) >= self._max_rows:
                    del self._rows[: len(rows)]
                    self._written, self._part = 0, self._part + 1

    def close(self) -> None:
        """Write what is left and stop the thread."""
        self._stop.set()
        self._thread.join()
        self.flush()

    def _keep_flushing(self) -> None:
        said = 0.0
        while not self._stop.wait(self._flush_s):
            try:
                self.flush()
            except Exception as error:  # kept in self.error and shown by /healthz; the rows are tried again
                if time.monotonic() - said > 60:
                    said = time.monotonic()
                    _log.error("The logbook cannot be written: %s", error)


def read_logbook(folder: Path) -> pa.Table:
    """All rows in ``folder`` in order of time, as ``LOGBOOK_SCHEMA``; an empty table when there is none."""
    parts = []
    for path in sorted(folder.glob("*.parquet")):
        if not path.name.startswith("."):
            parts.append(pq.read_table(path, schema=LOGBOOK_SCHEMA, partitioning=None))
    table = pa.concat_tables(parts) if parts else LOGBOOK_SCHEMA.empty_table()
    return table.sort_by("time")


def _parquet(rows: list[Entry]) -> bytes:
    # prompts come from clients: pyarrow would refuse a lone surrogate, and one row must not cost the others
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Entry)}
    columns["prompt"] = [p if p is None else p.encode("utf-8", "replace").decode() for p in columns["prompt"]]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pydict(columns, schema=LOGBOOK_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
