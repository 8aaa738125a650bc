"""Pictures that were sent as links: files in a folder of the recipe's home, for a time and up to a size.

A link holds 256 random bits. Whoever has it may fetch the picture, as with OpenAI's: it works in an ``<img>``, and
needs no key. The folder is shared by the replicas, so any of them answers. No name from a client is opened unless it is
made of exactly such bits and one of the three formats.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from pathlib import Path

from components.contracts.recipe import Serve
from components.runtime.storage import write_chunks
from serving.answers import Format

_NAME = re.compile(r"[A-Za-z0-9_-]{43}\.(png|jpeg|webp)")
_SWEPT_AT_LEAST = 16  # times within one filling of the folder


class ImageStore:
    """Pictures in ``folder``, for ``keep_s`` seconds; beyond ``max_bytes`` the oldest go.

    Each writer looks at the folder after every sixteenth of ``max_bytes`` that it wrote, and at least once in a quarter
    of ``keep_s``; so the folder holds at most ``max_bytes`` and a sixteenth of it for every replica.
    """

    def __init__(self, folder: Path, max_bytes: int, keep_s: float) -> None:
        self._folder, self._max, self.keep_s = folder, max_bytes, keep_s
        self._lock = threading.Lock()
        self._since = max_bytes  # bytes written since the last look: the first one is at the first picture
        self._swept_at = 0.0

    @classmethod
    def of(cls, serve: Serve, home: Path) -> ImageStore:
        """The store of a recipe, below its ``home``."""
        return cls(home / "images", serve.url_mb * 2**20, serve.url_minutes * 60.0)

    def put(self, data: bytes, format: Format) -> str:
        """Keep an encoded picture; its name is the end of its link.

        Raises:
            StoreFullError, OSError: the disk refused it.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"{secrets.token_urlsafe(32)}.{format}"
        write_chunks(str(self._folder / name), (data,), sync=False)  # after a crash of the machine it may be gone
        with self._lock:
            self._since += len(data)
            due = self._since * _SWEPT_AT_LEAST >= self._max or time.monotonic() - self._swept_at > self.keep_s / 4
            if due:
                self._since, self._swept_at = 0, time.monotonic()
        if due:
            self.sweep()
        return name

    def get(self, name: str) -> bytes | None:
        """The picture of that name; None when there is none, or its time is over."""
        if not _NAME.fullmatch(name):
            return None
        path = self._folder / name
        try:
            if time.time() - path.stat().st_mtime > self.keep_s:
                return None
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def sweep(self) -> None:
        """Delete what is too old, and then the oldest until the rest is within the size."""
        kept: list[tuple[float, int, str]] = []
        total, now = 0, time.time()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another replica sweeps too
                    found = entry.stat()
                    if now - found.st_mtime > self.keep_s:  # also what a killed writer left half done
                        os.unlink(entry.path)
                    elif _NAME.fullmatch(entry.name):
                        kept.append((found.st_mtime, found.st_size, entry.path))
                        total += found.st_size
        for _, size, path in sorted(kept):
            if total <= self._max:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size


def media_type(name: str) -> str:
    """Of a picture by its name in the store."""
    return f"image/{name.rpartition('.')[2]}"
