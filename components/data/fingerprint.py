"""A digest of the bytes of a folder's pictures: whether a source of files is still what it was.

A checksum that the storage itself gives (an ETag, an MD5) is taken for the bytes. Files of this machine are read
once; what they were is noted with size and time of change, and read again only when one of those is another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.contracts.errors import InputError
from components.data import tars
from components.data.folders import is_local, is_picture, listed, place_of

_CHECKSUMS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "crc32c", "checksum", "sha256")
_CHUNK = 1 << 20
_YOUNG_NS = 2 * 10**9  # a file changed so lately may change again without another time of change
_NOTES_SCHEMA = pa.schema(
    [("path", pa.string()), ("size", pa.int64()), ("changed_ns", pa.int64()), ("sha256", pa.string())]
)


def content_digest(path: str, notes: Path) -> str:
    """SHA-256 (hex) of the names and contents of every picture and tar that `folders.listed` finds.

    Args:
        path: as :func:`components.data.folders.read_folder` takes it.
        notes: where to note what local files were; lost or damaged notes cost another reading.

    Raises:
        InputError: a file cannot be read.
    """
    fs, root, _ = place_of(path)
    local, known, seen, total = is_local(fs), dict[str, _Note](), dict[str, _Note](), hashlib.sha256()
    if local:
        known = _noted(notes)
    for name, info in listed(path).items():
        if not is_picture(name) and not name.lower().endswith(tars.ENDINGS):
            continue
        try:
            if local:
                found = _of_local(Path(root) / name, Path(root), known, seen)
            else:
                found = _given(info) or _read(fs.open(f"{root}/{name}", "rb"))
        except FileNotFoundError:
            found = "missing"
        except OSError as error:
            raise InputError(f"{root}/{name} cannot be read: {error.strerror or error}") from error
        total.update(json.dumps([name, found]).encode())
    if local and seen != known:
        _note(notes, seen)
    return total.hexdigest()


_Note = tuple[int, int, str]  # size, time of change, sha256


def _of_local(file: Path, root: Path, known: dict[str, _Note], seen: dict[str, _Note]) -> str:
    real = file.resolve()
    if not real.is_relative_to(root.resolve()):
        return "outside"  # it is never read
    state = real.stat()
    if not stat.S_ISREG(state.st_mode):
        return "not a file"
    note = known.get(str(real))
    if note is None or note[:2] != (state.st_size, state.st_mtime_ns):
        note = (state.st_size, state.st_mtime_ns, _read(real.open("rb")))
    if state.st_mtime_ns < time.time_ns() - _YOUNG_NS:
        seen[str(real)] = note
    return note[2]


def _given(info: dict[str, Any]) -> str | None:
    return next((f"{name}:{info[name]}" for name in _CHECKSUMS if info.get(name)), None)


def _read(opened: Any) -> str:
    sha = hashlib.sha256()
    with opened as file:
        while data := file.read(_CHUNK):
            sha.update(data)
    return sha.hexdigest()


def _noted(notes: Path) -> dict[str, _Note]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(notes, schema=_NOTES_SCHEMA)
    except (OSError, pa.ArrowException):
        return {}
    columns = [table[name].to_pylist() for name in _NOTES_SCHEMA.names]
    return {path: (size, changed, sha) for path, size, changed, sha in zip(*columns, strict=True)}


def _note(notes: Path, seen: dict[str, _Note]) -> None:
    import pyarrow.parquet as pq

    rows = [(path, *note) for path, note in seen.items()]
    names = _NOTES_SCHEMA.names
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=_NOTES_SCHEMA)
    partial = notes.with_name(f".{notes.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # without notes the files are read again, no more
        notes.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial)
        os.replace(partial, notes)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
