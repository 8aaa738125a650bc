"""Champions that a server gave up because their first requests failed: a note beside the registry.

The server that notices writes it, every other replica goes by it, and the watch carries the rollback out in the
registry. A note is of one promotion: the same version promoted again is a new start.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from components.contracts.errors import ArtifactError
from components.evaluation.signing import Keys
from components.evaluation.vouching import Version, promotion_of
from components.runtime.storage import write_bytes

NAME = "dropped.json"


class Drops:
    """The notes in ``home``; promotions are read with ``keys``."""

    def __init__(self, home: Path, keys: Keys) -> None:
        self._path, self._keys = home / NAME, keys

    def add(self, version: Version, why: str) -> None:
        """Note that ``version``, as it is promoted now, was given up.

        Raises:
            StoreFullError: no room is left.
        """
        at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        notes = self._read() | {self.promotion(version): {"why": why, "at": at}}
        write_bytes(str(self._path), (json.dumps(notes, indent=2) + "\n").encode())

    def why(self, version: Version) -> str | None:
        """Why ``version``, as it is promoted now, was given up; None when it was not.

        Raises:
            ArtifactError: the file is damaged.
        """
        notes = self._read()
        return notes[self.promotion(version)]["why"] if notes and self.promotion(version) in notes else None

    def promotion(self, version: Version) -> str:
        """What the last promotion of ``version`` is called in the notes."""
        promotion = promotion_of(version, self._keys)
        return f"{version.name}/{version.version}/{promotion['serial'] if promotion else 0}"

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(name): {"why": str(note["why"]), "at": str(note["at"])} for name, note in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(
                f"{self._path} cannot be read: {error}",
                expected="the notes that a server wrote about champions it gave up",
                remedy="delete the file; `atelier watch` goes by the logbook as well",
            ) from error
