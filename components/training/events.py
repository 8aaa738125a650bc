"""What happens in a training that its user should know: lines in a file, which the process that waits for it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

EVENTS = "events.txt"


def teller(folder: Path, quiet: bool = False) -> Callable[[str], None]:
    """Adds lines to the events of a training's folder, or does nothing when ``quiet``."""

    def tell(line: str) -> None:
        if not quiet:
            with (folder / EVENTS).open("a") as file:
                file.write(line + "\n")

    return tell


def told(folder: Path, seen: int = 0) -> list[str]:
    """The events so far, without the first ``seen``."""
    path = folder / EVENTS
    return path.read_text().splitlines()[seen:] if path.exists() else []
