"""The first loading of a new champion, by one replica at a time.

A model whose loading kills the process (memory, a crash in native code) leaves no error to catch: the replica is
started anew and meets the same champion. So a replica notes before that it tries. When it dies of it, those that serve
something stay as they are, and the one that takes its place tries once more, in case the death had another reason.
After the second death the champion is given up, as one whose first requests failed
(:mod:`components.evaluation.dropping`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from components.runtime.storage import write_chunks

NAME = "loading.json"
MOST_DEATHS = 2
_WAIT_S = 20.0  # for the lock, which is held for milliseconds


@dataclass(frozen=True)
class _Note:
    """Of one promotion. ``by``: the replica that is loading it now, empty when none is."""

    promotion: str = ""
    by: str = ""
    deaths: int = 0
    done: bool = False


class FirstLoad:
    """The note in ``home`` that replicas share.

    Args:
        replica: name of this one, which a replica that takes its place does not have.
        living: names of the replicas that live.
    """

    def __init__(self, home: Path, replica: str, living: Callable[[], Collection[str]]) -> None:
        self._path, self._replica, self._living = home / NAME, replica, living

    def begin(self, promotion: str, serves: bool) -> int | None:
        """Ask to load ``promotion``.

        Args:
            serves: whether this replica serves something, which it would take with it.

        Returns:
            How many died of it before; at :data:`MOST_DEATHS` nobody may. None: another one is at it. Below 0: one died
            of it, and one that serves nothing is to try next.

        Raises:
            OSError, StoreFullError, filelock.Timeout: the note cannot be kept.
        """
        with FileLock(f"{self._path}.lock", timeout=_WAIT_S):
            note = self._read(promotion)
            if note.done:
                return 0
            deaths = note.deaths
            if note.by and note.by != self._replica:
                if note.by in self._living():
                    return None
                deaths += 1
            waits = deaths >= MOST_DEATHS or (deaths > 0 and serves)
            self._write(_Note(promotion, "" if waits else self._replica, deaths))
        return -deaths if waits and deaths < MOST_DEATHS else deaths

    def end(self, promotion: str, done: bool) -> None:
        """It was loaded (``done``), or failed with an error: it did not kill the process."""
        with FileLock(f"{self._path}.lock", timeout=_WAIT_S):
            note = self._read(promotion)
            if note.by == self._replica:
                self._write(_Note(promotion, "", note.deaths, done))

    def _read(self, promotion: str) -> _Note:
        try:
            note = _Note(**json.loads(self._path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):  # none yet, or damaged: begin anew
            return _Note(promotion)
        return note if note.promotion == promotion else _Note(promotion)

    def _write(self, note: _Note) -> None:
        write_chunks(str(self._path), [json.dumps(asdict(note)).encode()])
