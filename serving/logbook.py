"""The logbook: one row for every picture served and for every request refused, in parquet.

The rows of the running part stay in memory, and its file is written anew, whole and by atomic rename, at most
a second after a row came in. So there are few files, a reader never sees half of one, and a kill loses a
second. What may not be kept (personal data, users' names) is taken out before a row is on disk, and a part ends
with its day, so that rows can be deleted when they are too old.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.contracts.records import LOGBOOK_SCHEMA
from components.runtime.storage import write_bytes
from serving.erasing import erasures, expire, folder_lock, now
from serving.privacy import Privacy

_log = logging.getLogger("ray.serve")
_MAX_HELD = 100_000  # rows kept in memory while the disk refuses them; beyond it the oldest go
_MAX_TURNED_AWAY = 600  # rows a minute of requests that were refused before they were read; more are only counted
_TURNED_AWAY = frozenset({401, 403, 429})
_EXPIRE_S = 3600.0  # between two looks for rows that are too old


@dataclass(frozen=True)
class Entry:
    """A row of ``LOGBOOK_SCHEMA``; see there for the fields.

    Args:
        prompt: as it came; None when it was not read.
        user: the name that the client gave its user, as it came.
        private: the key's owner wants neither to be kept.
    """

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
    time: datetime.datetime = field(default_factory=now)
    user: str | None = None
    private: bool = False
    role: str | None = None
    quality: float | None = None
    judge: str | None = None
    moderation_action: str | None = None
    moderation_categories: list[str] | None = None


def image_stats(pixels: NDArray[np.uint8]) -> list[float]:
    """Mean R, G, B and standard deviation R, G, B of (H, W, 3) pixels, each in 0..1."""
    scaled = pixels.reshape(-1, 3).astype(np.float32) / 255.0
    return [float(v) for v in (*scaled.mean(axis=0), *scaled.std(axis=0))]


class Logbook:
    """Appends entries to rolled parquet files in ``folder``.

    Args:
        folder: made with mode 0700: prompts are personal.
        writer: part of the file names; unique among the writers of one folder.
        privacy: what may be kept; by default redacted prompts, with the secret in the folder's parent.
        keep_days: rows that are older are deleted, whoever wrote them; 0: none.
        max_rows: a part is closed at this size and the next one begun.
        flush_s: how long a row waits at most before it is on disk.
        on_error: called when a write failed (the rows are kept and written later).
    """

    def __init__(
        self,
        folder: Path,
        writer: str,
        *,
        privacy: Privacy | None = None,
        keep_days: int = 90,
        max_rows: int = 2000,
        flush_s: float = 1.0,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        _make(folder)
        self._folder, self._writer = folder, writer
        self._privacy = privacy or Privacy(folder.parent)
        self._keep_days, self._max_rows, self._flush_s, self._on_error = keep_days, max_rows, flush_s, on_error
        self._fresh: list[Entry] = []  # as they came
        self._rows: list[dict[str, Any]] = []  # of the running part, as they may be kept
        self._part, self._file, self._changed = 0, folder, False
        self._turned_away = (0, 0)  # the minute, and how many rows it has
        self._lock, self._writing = threading.Lock(), threading.Lock()  # of _fresh; of the rest
        self._stop = threading.Event()
        self.error: str | None = None  # why the last write failed; None when it worked
        self._thread = threading.Thread(target=self._keep_flushing, name="logbook", daemon=True)
        self._thread.start()

    @property
    def home(self) -> Path:
        """The folder above: the keys and the secret under which users are known lie there."""
        return self._folder.parent

    def append(self, *entries: Entry) -> None:
        """Add rows; they are on disk within ``flush_s``.

        Of requests that were refused before their prompt was read at most :data:`_MAX_TURNED_AWAY` a minute are
        kept: strangers must not fill the disk.
        """
        with self._lock:
            self._fresh.extend(entry for entry in entries if self._worth(entry))
            del self._fresh[:-_MAX_HELD]

    def flush(self) -> None:
        """Return when every row appended so far is on disk.

        Raises:
            StoreFullError, OSError: the disk refused; the rows are kept for the next flush.
            InputError: the secret under which users are known is damaged; the same.
            RuntimeUnavailable: another process holds the folder; the same.
        """
        with self._writing:
            with self._lock:
                fresh = list(self._fresh)
                self._fresh.clear()
            if not fresh and not self._changed:
                return
            try:
                self._take(fresh)
                self._write()
            except Exception as error:
                self.error = str(error)
                self._on_error()
                raise
            self.error = None

    def close(self) -> None:
        """Write what is left and stop the thread."""
        self._stop.set()
        self._thread.join()
        self.flush()

    def _worth(self, entry: Entry) -> bool:
        if entry.prompt is not None or entry.status not in _TURNED_AWAY:
            return True
        minute, count = int(entry.time.timestamp() // 60), 0
        if self._turned_away[0] == minute:
            count = self._turned_away[1]
        self._turned_away = (minute, count + 1)
        return count < _MAX_TURNED_AWAY

    def _take(self, fresh: list[Entry]) -> None:
        """Add the entries to the running part, as they may be kept."""
        try:
            rows = [self._row(entry) for entry in fresh]
        except BaseException:
            with self._lock:
                self._fresh[:0] = fresh
            raise
        if rows and self._rows and not self._changed and rows[0]["time"].date() != self._rows[0]["time"].date():
            self._roll()  # a part holds one day, so that it can be deleted whole
        if rows and not self._rows:
            self._file = self._folder / f"{rows[0]['time']:%Y%m%dT%H%M%S}-{self._writer}-{self._part:05d}.parquet"
        self._rows.extend(rows)
        self._changed = self._changed or bool(rows)
        del self._rows[:-_MAX_HELD]

    def _row(self, entry: Entry) -> dict[str, Any]:
        row = {name: getattr(entry, name) for name in LOGBOOK_SCHEMA.names}
        row["user"] = None if entry.private else self._privacy.user(entry.key_id, entry.user)
        try:
            row["prompt"] = None if entry.private else self._privacy.prompt(entry.prompt)
        except Exception:  # a text that cannot be redacted must neither be kept nor cost the other rows
            _log.exception("The prompt of request %s could not be redacted and is not kept", entry.request_id)
            row["prompt"] = None
        return row

    def _write(self) -> None:
        """Write the running part, without what was erased since its rows came."""
        _make(self._folder)
        with folder_lock(self._folder):
            gone = erasures(self._folder)
            self._rows = [row for row in self._rows if not any(erasure.names(row) for erasure in gone)]
            if self._rows:
                write_bytes(str(self._file), _parquet(self._rows))
            else:
                self._file.unlink(missing_ok=True)
        self._changed = False
        if len(self._rows) >= self._max_rows:
            self._roll()

    def _roll(self) -> None:
        self._rows, self._part = [], self._part + 1

    def _keep_flushing(self) -> None:
        said, expired = 0.0, float("-inf")
        while not self._stop.wait(self._flush_s):
            try:
                self.flush()
                if time.monotonic() - expired > _EXPIRE_S:
                    expired = time.monotonic()
                    expire(self._folder, self._keep_days)
            except Exception as error:  # kept in self.error and shown by /healthz; the rows are tried again
                self.error = self.error or str(error)
                if time.monotonic() - said > 60:
                    said = time.monotonic()
                    _log.error("The logbook cannot be written: %s", error)


def read_logbook(folder: Path) -> pa.Table:
    """All rows in ``folder`` in order of time, as ``LOGBOOK_SCHEMA``; an empty table when there is none."""
    parts = []
    for path in sorted(folder.glob("*.parquet")):
        if not path.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # deleted since: it was too old, or erased
                parts.append(pq.read_table(path, schema=LOGBOOK_SCHEMA, partitioning=None))
    table = pa.concat_tables(parts) if parts else LOGBOOK_SCHEMA.empty_table()
    return table.sort_by("time")


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    # prompts come from clients: pyarrow would refuse a lone surrogate, and one row must not cost the others
    columns = {name: [row[name] for row in rows] for name in LOGBOOK_SCHEMA.names}
    columns["prompt"] = [p if p is None else p.encode("utf-8", "replace").decode() for p in columns["prompt"]]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pydict(columns, schema=LOGBOOK_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
