"""Rows that leave the logbook: those of a user or a key who asks for it, and those that are too old.

A file is replaced whole, by atomic rename and under the folder's lock, so readers see the old or the new one. Beside
running servers an erasure is first written down in ``logbook/erased/``: a writer reads that before each of its writes
and drops from its memory what is named there, so rows do not come back with its next write.
"""

from __future__ import annotations

import datetime
import io
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from components.contracts.errors import InputError, RuntimeUnavailable
from components.runtime.storage import write_bytes
from serving.auth import list_keys
from serving.privacy import Privacy

_ERASED = "erased"
_UNFINISHED = ".tmp-*"  # what `write_bytes` writes to before it renames
_KEPT_DAYS = 2  # of an erasure's note: a part of the logbook ends with its day, so no writer holds older rows
_LOCK_S = 60.0


def now() -> datetime.datetime:
    """The time, with its zone."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Erasure:
    """Rows of before ``time`` that have one of ``users`` (None: any) and ``key_id`` (None: any)."""

    time: datetime.datetime
    users: frozenset[str] | None
    key_id: str | None

    def names(self, row: Mapping[str, Any]) -> bool:
        """Whether it names this row of the logbook."""
        ours = self.users is None or row["user"] in self.users
        return ours and self.key_id in (None, row["key_id"]) and row["time"] <= self.time


@dataclass(frozen=True)
class Erased:
    """How many rows were removed, from how many files."""

    rows: int
    files: int


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Held by whoever writes or replaces a file of the logbook, for as long as that one file takes.

    Raises:
        RuntimeUnavailable: another process holds it, for longer than any file takes.
    """
    lock = FileLock(str(folder / ".lock"), timeout=_LOCK_S)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeUnavailable(
            f"The logbook {folder} is locked for more than {_LOCK_S:.0f} s",
            remedy="look for a process that hangs with a file of that folder open, and try again",
        ) from error
    try:
        yield
    finally:
        lock.release()


def erase(home: Path, *, user: str | None = None, key_id: str | None = None) -> Erased:
    """Remove every row of ``user``, of ``key_id``, or of that user of that key; also beside running servers.

    Killed in between, it is completed by running it again.

    Args:
        home: holds ``logbook/``, ``keys.json`` and the secret under which users are known.
        user: the name that a client sent in the field ``user``; without a key, the user of that name of every key.

    Raises:
        InputError: neither a user nor a key was named, or the secret is damaged.
        RuntimeUnavailable: another process holds the logbook.
        OSError: the disk refused.
    """
    if not user and not key_id:
        raise InputError("Nobody was named whose rows shall be erased", expected="a user, a key, or both")
    folder = home / "logbook"
    if not folder.is_dir():
        return Erased(0, 0)
    users = None
    if user:
        keys = {key_id} if key_id else {key.id for key in list_keys(home / "keys.json")} | _key_ids(folder) | {None}
        privacy = Privacy(home)
        users = frozenset(found for key in keys if (found := privacy.user(key, user)))
    erasure = Erasure(now(), users, key_id)
    with folder_lock(folder):  # from here on no writer writes a row that it names
        _note(folder, erasure)
        for left in folder.glob(_UNFINISHED):  # of a writer that was killed: nobody writes now
            left.unlink(missing_ok=True)
    paths = sorted(folder.glob("*.parquet"))
    _note_requests(folder, erasure, {name for path in paths for name in _named(path, erasure)})
    counts = [_without(folder, path, erasure) for path in paths]
    return Erased(sum(counts), sum(map(bool, counts)))


@contextmanager
def erased_requests(home: Path) -> Iterator[set[str]]:
    """Ids of requests that were erased here and may stand elsewhere still; when the block has ended without an error,
    they are forgotten here too."""
    found: set[str] = set()
    paths = sorted((home / "logbook" / _ERASED).glob("*.requests"))
    for path in paths:
        found.update(json.loads(path.read_text()))
    yield found
    for path in paths:
        path.unlink(missing_ok=True)


def erasures(folder: Path) -> list[Erasure]:
    """What was erased lately.

    Raises:
        ValueError, KeyError, OSError: one of the notes cannot be read.
    """
    return [_read_note(path) for path in sorted((folder / _ERASED).glob("*.json"))]


def expire(folder: Path, keep_days: int) -> int:
    """Remove rows older than ``keep_days`` (0: none), and notes of erasures that every writer has seen.

    Returns:
        How many files were removed or made shorter.
    """
    for note in (folder / _ERASED).glob("*.json"):
        if _read_note(note).time < now() - datetime.timedelta(days=_KEPT_DAYS):
            note.unlink(missing_ok=True)
    with folder_lock(folder):
        for left in folder.glob(_UNFINISHED):
            left.unlink(missing_ok=True)
    if not keep_days:
        return 0
    before = now() - datetime.timedelta(days=keep_days)
    old = Erasure(before, None, None)
    return sum(bool(_without(folder, path, old)) for path in sorted(folder.glob("*.parquet")) if _begun(path) < before)


def _without(folder: Path, path: Path, erasure: Erasure) -> int:
    """Take the rows that ``erasure`` names out of one file; the number of them."""
    with folder_lock(folder):
        try:
            table = pq.read_table(path, partitioning=None)
        except FileNotFoundError:  # another process has removed it as too old
            return 0
        gone = _mask(table, erasure)
        count = int(pc.sum(gone).as_py() or 0)
        if count == table.num_rows:
            path.unlink()
        elif count:
            buffer = io.BytesIO()
            pq.write_table(table.filter(pc.invert(gone)), buffer, compression="zstd")
            write_bytes(str(path), buffer.getvalue())
        return count


def _named(path: Path, erasure: Erasure) -> list[str]:
    """Ids of the requests whose rows in that file ``erasure`` names."""
    try:
        table = pq.read_table(path, partitioning=None)
    except FileNotFoundError:
        return []
    ids: list[str] = table.filter(_mask(table, erasure))["request_id"].to_pylist()
    return ids


def _mask(table: pa.Table, erasure: Erasure) -> pa.ChunkedArray:
    gone = pc.less_equal(table["time"], pa.scalar(erasure.time, pa.timestamp("us", tz="UTC")))
    if erasure.users is not None:
        if "user" not in table.column_names:  # written before users were kept
            return pc.and_(gone, False)
        named = pa.array(sorted(erasure.users), pa.string())
        gone = pc.and_(gone, pc.is_in(table["user"], named))
    if erasure.key_id is not None:
        gone = pc.and_(gone, pc.fill_null(pc.equal(table["key_id"], erasure.key_id), False))
    return gone


def _key_ids(folder: Path) -> set[str | None]:
    found: set[str | None] = set()
    for path in folder.glob("*.parquet"):
        try:
            found.update(pc.unique(pq.read_table(path, columns=["key_id"], partitioning=None)["key_id"]).to_pylist())
        except FileNotFoundError:
            continue
    return found


def _note(folder: Path, erasure: Erasure) -> None:
    content = {
        "time": erasure.time.isoformat(),
        "users": None if erasure.users is None else sorted(erasure.users),
        "key_id": erasure.key_id,
    }
    (folder / _ERASED).mkdir(exist_ok=True, mode=0o700)
    name = f"{erasure.time:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.json"
    write_bytes(str(folder / _ERASED / name), json.dumps(content).encode())


def _note_requests(folder: Path, erasure: Erasure, ids: set[str]) -> None:
    if ids:
        name = f"{erasure.time:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}.requests"
        write_bytes(str(folder / _ERASED / name), json.dumps(sorted(ids)).encode())


@lru_cache(maxsize=65_536)  # notes do not change, and writers look at them every second
def _read_note(path: Path) -> Erasure:
    found = json.loads(path.read_text())
    users = found["users"]
    time = datetime.datetime.fromisoformat(found["time"])
    return Erasure(time, None if users is None else frozenset(users), found["key_id"])


def _begun(path: Path) -> datetime.datetime:
    """No row of the file is older: its name begins with the time of its first row, or of its writer's start."""
    if re.match(r"\d{8}T\d{6}-", path.name):
        return datetime.datetime.strptime(path.name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=datetime.UTC)
    return datetime.datetime.min.replace(tzinfo=datetime.UTC)
