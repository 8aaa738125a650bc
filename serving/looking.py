"""One look at the model registry: which version is to be served, and which are to be tried beside it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from components.contracts.errors import RegistryError
from components.evaluation.dropping import Drops
from components.evaluation.registry import CHAMPION
from components.evaluation.signing import Keys
from components.evaluation.vouching import newest
from components.runtime.tracking import ModelVersion, Tracker


@dataclass(frozen=True)
class Looked:
    """What a look found."""

    champion: ModelVersion | None  # that the alias names
    dropped: str | None = None  # why a server gave it up
    before: ModelVersion | None = None  # the champion before it, to be served in its place, where it was given up
    rest: tuple[ModelVersion, ...] = ()  # the versions that ``before`` is the newest champion of
    trials: dict[str, ModelVersion | None] = field(default_factory=dict)  # by alias


class Registry:
    """The registered model called ``model``, read only; connected when it is first looked at."""

    def __init__(self, uri: str, experiment: str, model: str, keys: Keys, aliases: Sequence[str] = ()) -> None:
        self._uri, self._experiment, self._model = uri, experiment, model
        self._keys, self._aliases = keys, aliases
        self._drops = Drops(keys.path.parent, keys)
        self._tracker: Tracker | None = None

    def look(self, must_exist: bool) -> Looked:
        """The versions that the aliases name now.

        Args:
            must_exist: whether a registry was there before. A file that never was is no error: nothing has been
                released yet.

        Raises:
            RegistryError: it does not answer.
            ArtifactError: the notes about champions that were given up are damaged.
        """
        try:
            tracker = self._connected(must_exist)
            if tracker is None:
                return Looked(None)
            trials = {alias: tracker.alias(self._model, alias) for alias in self._aliases}
            champion = tracker.alias(self._model, CHAMPION)
        except Exception:
            self._tracker = None  # connect anew
            raise
        if champion is None or (why := self._drops.why(champion)) is None:
            return Looked(champion, trials=trials)
        rest = tuple(
            v for v in tracker.versions(self._model) if "rolled_back" not in v.tags and self._drops.why(v) is None
        )
        before = newest(rest, self._keys)
        found = next((v for v in rest if before is not None and v.version == before[0].version), None)
        return Looked(champion, why, found, rest, trials)

    def versions(self) -> Sequence[ModelVersion]:
        """All versions; to be called after a look.

        Raises:
            RegistryError: it does not answer.
        """
        assert self._tracker is not None, "whoever asks has a version of it"
        return self._tracker.versions(self._model)

    def drop(self, version: ModelVersion, why: str) -> None:
        """Note for all servers that ``version``, as it is promoted now, was given up.

        Raises:
            StoreFullError, OSError: it cannot be noted.
        """
        self._drops.add(version, why)

    def promotion(self, version: ModelVersion) -> str:
        """A name of the last promotion of ``version``; another one when it is promoted anew."""
        return self._drops.promotion(version)

    def _connected(self, must_exist: bool) -> Tracker | None:
        if self._uri.startswith("sqlite:///"):
            # opening would make a missing file and fill it; a reader must do neither
            file = Path(self._uri.removeprefix("sqlite:///"))
            if not file.exists() and not must_exist and self._tracker is None:
                return None  # nothing has been released yet
            if not os.access(file, os.R_OK):
                raise RegistryError(f"The registry file {file} is gone or unreadable", remedy="restore it")
            if self._tracker is None and not _has_aliases(file):
                return None
        if self._tracker is None:
            self._tracker = Tracker(self._uri, self._experiment)
        return self._tracker


def _has_aliases(file: Path) -> bool:
    import sqlite3

    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        query = "select count(*) from sqlite_master where name = 'registered_model_aliases'"
        return bool(connection.execute(query).fetchone()[0])
