"""Webdataset tars read in place: which files a tar has and where they lie in it, without unpacking it to disk.

A packed tar (``.tar.gz``, ``.tgz``) is unpacked into a nameless temporary file first, under a limit.
"""

from __future__ import annotations

import tarfile
import tempfile
import threading
import zlib
from dataclasses import dataclass, field
from typing import IO

import fsspec

ENDINGS = (".tar", ".tar.gz", ".tgz")
_GROWTH = 20  # times the packed size, and ..
_SLACK = 64 << 20  # .. bytes beside it: a packed tar that unfolds to more is refused
_CHUNK = 1 << 20
_HEADER_BYTES = 1 << 20


class TooLarge(Exception):
    """A packed tar unfolds beyond its limit."""


@dataclass(frozen=True)
class Member:
    """Where a file of the tar lies; ``regular`` is False for links, devices and folders."""

    offset: int
    size: int
    regular: bool


@dataclass
class Tar:
    """An open tar. Reading is safe for several threads.

    Attributes:
        members: by name, in the tar's order; of equal names the first.
        whole: False where the tar ends early or is damaged: then these are the members before that place.
    """

    members: dict[str, Member]
    whole: bool
    _file: IO[bytes]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, member: Member, most: int) -> bytes:
        """The first ``most`` bytes of a member, fewer where the tar ends before."""
        with self._lock:
            self._file.seek(member.offset)
            return self._file.read(min(member.size, most))

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        self._file.close()


def open_tar(url: str) -> Tar:
    """The tar at an fsspec URL; it is closed by its own ``close`` or when nobody holds it any more.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        TooLarge: it is packed and unfolds to far more than it takes.
    """
    fs, path = fsspec.core.url_to_fs(url)
    file: IO[bytes] = fs.open(path, "rb")
    whole = True
    if not url.lower().endswith(".tar"):
        with file as packed:
            file = tempfile.TemporaryFile(prefix="atelier-tar-")  # noqa: SIM115  (it lives as long as the tar)
            whole = _unpack(packed, file)
    members, all_there = _listed(file)
    return Tar(members, whole and all_there, file)


class _Headers:
    """What tarfile reads a tar's headers through: a header that announces megabytes is not read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        if size > _HEADER_BYTES:
            raise tarfile.ReadError("a header is too large")
        return self._file.read(size)


def _listed(file: IO[bytes]) -> tuple[dict[str, Member], bool]:
    end = file.seek(0, 2)
    file.seek(0)
    members = dict[str, Member]()
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members.clear()  # it would keep every header
                regular = info.isreg() and not info.issparse()
                members.setdefault(info.name, Member(info.offset_data, info.size, regular))
    except (tarfile.TarError, ValueError, EOFError):
        return members, False
    return members, all(member.offset + member.size <= end for member in members.values())


def _unpack(packed: IO[bytes], plain: IO[bytes]) -> bool:
    """Write what gzip holds; False where it ends early or is damaged."""
    most = packed.seek(0, 2) * _GROWTH + _SLACK
    packed.seek(0)
    unpacker, written, inside = zlib.decompressobj(31), 0, True
    while data := packed.read(_CHUNK):
        while data:
            try:
                part = unpacker.decompress(data, _CHUNK)
            except zlib.error:
                return False
            inside = True
            written += len(part)
            if written > most:
                raise TooLarge(f"it unfolds to more than {_GROWTH} times its size")
            plain.write(part)
            data = unpacker.unconsumed_tail
            if unpacker.eof:  # another file may follow, or zeros that fill up a block
                data, unpacker, inside = unpacker.unused_data.lstrip(b"\0"), zlib.decompressobj(31), False
    return not inside
