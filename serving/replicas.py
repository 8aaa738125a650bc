"""What the replicas of one image API tell each other and whoever looks: small files in a folder that all see."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.runtime.storage import write_chunks

STALE_S = 15.0  # a replica that has not written for so long is gone, or cannot write
_FORGET_S = 600.0
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a replica. ``at`` is in seconds since 1970."""

    replica: str
    at: float
    host: str
    pid: int
    state: dict[str, Any] = field(default_factory=dict)  # see serving.follower.FollowerState
    metrics: str = ""  # in the exposition format


class Board:
    """The signs in ``folder``; ``replica`` writes its own there, once a second from :meth:`start` on."""

    def __init__(self, folder: Path, replica: str, every_s: float = 1.0) -> None:
        self._folder, self._replica, self._every = folder, replica, every_s
        self._path = folder / f"{replica}.json"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error = ""

    def start(self, tell: Callable[[], tuple[dict[str, Any], str]]) -> None:
        """Post now and then again and again. ``tell`` gives the state and the metrics."""

        def post() -> None:
            while True:
                self._post(*tell())
                if self._stop.wait(self._every):
                    return

        self._thread = threading.Thread(target=post, name="board", daemon=True)
        self._thread.start()

    def others(self) -> dict[str, str]:
        """The metrics of the other living replicas, by name."""
        return {sign.replica: sign.metrics for sign in signs(self._folder) if sign.replica != self._replica}

    def living(self) -> set[str]:
        """The replicas that live, this one too; of this machine's, whose process does."""
        here = socket.gethostname()
        others = {sign.replica for sign in signs(self._folder) if sign.host != here or _runs(sign.pid)}
        return others | {self._replica}

    def close(self) -> None:
        """Take this replica's sign away, and those of replicas that are long gone."""
        self._stop.set()
        if self._thread:
            self._thread.join(10)
        self._path.unlink(missing_ok=True)
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _FORGET_S:
                    path.unlink()

    def _post(self, state: dict[str, Any], metrics: str) -> None:
        """Write this replica's sign, whole or not at all."""
        sign = Sign(self._replica, time.time(), socket.gethostname(), os.getpid(), state, metrics)
        try:
            write_chunks(str(self._path), [json.dumps(asdict(sign)).encode()], sync=False)
            self._error = ""
        except Exception as error:  # of whatever kind: requests are served all the same, and it is tried again
            if str(error) != self._error:
                _log.error("This replica cannot tell the others of itself. %s", error)
            self._error = str(error)


def signs(folder: Path, stale_s: float = STALE_S) -> list[Sign]:
    """Of the replicas that live, by name. A file that is taken away or half of another release is passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError):
            sign = Sign(**json.loads(path.read_text(encoding="utf-8")))
            if time.time() - sign.at <= stale_s:
                found.append(sign)
    return found


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return not Path("/proc/self").exists()  # without /proc it cannot be told: its sign decides
