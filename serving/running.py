"""Requests under way, by id and key, so that any replica can cancel them.

Each has an empty file in a folder that the replicas share. Whoever deletes the file cancels the request: the replica
that draws it looks at the folder a few times a second, and stops within one denoising step after that. Where the
cancelling replica is the drawing one, it does not wait for the next look.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_log = logging.getLogger("ray.serve")
_STALE_S = 3600.0  # far longer than any request takes: its server was killed


class _Held(NamedTuple):
    cancel: Callable[[], None]
    on_disk: bool


class RunningRequests:
    """The requests of this process, and a file in ``folder`` for each.

    Args:
        folder: shared by the replicas; None: only requests of this process can be cancelled.
        every_s: between two looks at the folder, in seconds; there are none while nothing runs.
    """

    def __init__(self, folder: Path | None = None, *, every_s: float = 0.25) -> None:
        self._folder, self._every = folder, every_s
        self._held: dict[str, _Held] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._forget_stale(folder)
            self._thread = threading.Thread(target=self._look, name="cancelling", daemon=True)
            self._thread.start()

    def hold(self, request_id: str, key_id: str | None, cancel: Callable[[], None]) -> Hold:
        """A request that is to be held; ``cancel`` is called from another thread, at most once."""
        name = f"{_digest(request_id)}-{_digest(key_id or '')}-{uuid.uuid4().hex[:12]}"
        return Hold(self, name, cancel)

    def cancel(self, request_id: str, key_id: str | None, *, anybodys: bool = False) -> bool:
        """Cancel the running requests of that id; False when there is none.

        Args:
            key_id: only what was asked with this key is cancelled.
            anybodys: whoever asked.
        """
        prefix = f"{_digest(request_id)}-" + ("" if anybodys else f"{_digest(key_id or '')}-")
        with self._changed:
            names = {name for name in self._held if name.startswith(prefix)}
        if self._folder is not None:
            with contextlib.suppress(OSError):  # a lost folder: those of this process, then
                names |= {name for name in os.listdir(self._folder) if name.startswith(prefix)}
        return any([self._end(name) for name in sorted(names)])

    def close(self) -> None:
        """Stop looking; what is held stays held."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(5)

    def _end(self, name: str) -> bool:
        """Whether this call cancelled it, and no other one before."""
        with self._changed:
            held = self._held.pop(name, None)
        gone = self._delete(name)
        if held is not None:
            held.cancel()
        return gone or held is not None

    def _begin(self, name: str, cancel: Callable[[], None]) -> None:
        on_disk = False
        if self._folder is not None:  # before it is held: what is held and has lost its file was cancelled
            try:
                (self._folder / name).touch()
                on_disk = True
            except OSError as error:  # it is drawn all the same, and this replica can cancel it
                _log.error("A running request cannot be noted, so other replicas cannot cancel it: %s", error)
        with self._changed:
            self._held[name] = _Held(cancel, on_disk)
            self._changed.notify_all()

    def _forget(self, name: str) -> None:
        with self._changed:
            self._held.pop(name, None)
        self._delete(name)

    def _delete(self, name: str) -> bool:
        if self._folder is None:
            return False
        try:
            (self._folder / name).unlink()
        except OSError:  # gone already, as a rule
            return False
        return True

    def _look(self) -> None:
        assert self._folder is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._held or self._closing)
                self._changed.wait_for(lambda: self._closing, self._every)
                if self._closing:
                    return
                noted = [name for name, held in self._held.items() if held.on_disk]
            try:
                there = set(os.listdir(self._folder))
            except OSError as error:  # a lost folder cancels nobody
                _log.error("The folder of running requests cannot be read: %s", error)
                continue
            for name in noted:
                if name not in there:
                    self._end(name)

    @staticmethod
    def _forget_stale(folder: Path) -> None:
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()


class Hold:
    """One running request. ``begin`` may be called in another thread; ``end`` ends it for good, also before that."""

    def __init__(self, running: RunningRequests, name: str, cancel: Callable[[], None]) -> None:
        self._running, self._name, self._cancel = running, name, cancel
        self._lock = threading.Lock()
        self._ended = False

    def begin(self) -> None:
        """From now on it can be cancelled. Touches the disk."""
        with self._lock:
            if not self._ended:
                self._running._begin(self._name, self._cancel)

    def end(self) -> None:
        """It is over, and cannot be cancelled any more."""
        with self._lock:
            self._ended = True
            self._running._forget(self._name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:24]
