"""Curve and summary of a training whose checkpoints are kept elsewhere.

Rank 0 writes both to a local folder. After a failure rank 0 may be on another machine, and the process that waits
for the summary on a third: so what is written goes with the checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import fsspec

from components.runtime.storage import write_bytes

if TYPE_CHECKING:
    from components.training.checkpoint import Found

_FILES = ("curve.jsonl", "summary.json", "events.txt")


class Far:
    """The small files of rank 0 in ``folder`` and their copies at ``url``; where there is a URL, and not if quiet."""

    def __init__(self, folder: Path, url: str | None, quiet: bool) -> None:
        self._folder, self._url = folder, None if quiet else url

    def take_up(self, found: Found | None) -> None:
        """The curve that came with a checkpoint, where this machine has none."""
        for name in _FILES:
            kept, mine = (found.folder if found else self._folder) / name, self._folder / name
            if self._url and kept.exists() and not mine.exists():
                write_bytes(str(mine), kept.read_bytes())

    def notes(self) -> dict[str, bytes]:
        """What goes with a checkpoint."""
        found = [self._folder / name for name in _FILES] if self._url else []
        return {path.name: path.read_bytes() for path in found if path.exists()}

    def leave(self) -> None:
        """At the end: everything to the URL."""
        for name, data in self.notes().items():
            write_bytes(f"{self._url}/{name}", data)


def fetch(url: str, folder: Path) -> None:
    """Bring what :meth:`Far.leave` left at ``url`` to ``folder``, where it is not there yet."""
    fs, root = fsspec.core.url_to_fs(url)
    for name in _FILES:
        if not (folder / name).exists() and fs.exists(f"{root}/{name}"):
            write_bytes(str(folder / name), fs.cat_file(f"{root}/{name}"))
