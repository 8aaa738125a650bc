"""Watching a training from outside: the progress line, and MLflow while it runs.

Rank 0 writes the curve and the sheets to the training's folder, and the process that started the workers reads them
there. So no worker waits for a tracking server, and none needs one to be installed.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from components.contracts.errors import RegistryError
from components.runtime.progress import Progress, say
from components.training.events import told

if TYPE_CHECKING:
    from components.runtime.tracking import Run

Point = dict[str, Any]
CURVE, SHEETS = "curve.jsonl", "sheets"  # as clock.py and sheets.py, which need torch, write them
_LOOK_S = 1.0
_LOG_S = 3.0  # between two calls of the tracking server


class Listener(Protocol):
    """Who wants to know how a training goes. Called from one thread."""

    def points(self, points: list[Point]) -> None:
        """New points of the curve, oldest first."""
        ...

    def sheet(self, path: Path) -> None:
        """A new sample sheet."""
        ...


class RunListener:
    """Logs to an MLflow run what the run does not have yet.

    A tracking server that is away does not stop a training: what it did not take is kept and sent with the next.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last = run.last_step("loss")
        self._kept: list[tuple[int, dict[str, float]]] = []
        self._sheets: list[Path] = []
        self._told = False

    def points(self, points: list[Point]) -> None:
        for point in points:
            if int(point["images"]) > self._last:
                self._last = int(point["images"])
                self._kept.append((self._last, _flat(point)))
        self._send()

    def sheet(self, path: Path) -> None:
        self._sheets.append(path)
        self._send()

    def finish(self) -> None:
        """Send what is left.

        Raises:
            RegistryError: the tracking server is still away.
        """
        if self._kept:
            self._run.log_points(self._kept)
            self._kept = []
        while self._sheets:
            self._run.log_artifact(self._sheets[0], "sheets")
            self._run.log_artifact(self._sheets[0].parent / "prompts.txt", "sheets")
            del self._sheets[0]

    def _send(self) -> None:
        try:
            self.finish()
        except RegistryError as error:
            if not self._told:
                say(f"  {error.problem}; the training goes on, and is logged when it is back")
            self._told = True


@contextlib.contextmanager
def following(name: str, plan: Any, folder: Path, listener: Listener | None = None) -> Iterator[None]:
    """Show and pass on what rank 0 writes to ``folder`` while the block runs, and what is left at its end."""
    bar = Progress(f"train {name}", plan.steps * plan.batch_size, "img", initial=_images_of(folder))
    follower = _Follower(folder, bar, listener)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            follower.look()

    watcher = threading.Thread(target=watch, name="following", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        follower.look(last=True)
        bar.close(follower.note)


class _Follower:
    def __init__(self, folder: Path, bar: Progress, listener: Listener | None) -> None:
        self._folder, self._bar, self._listener = folder, bar, listener
        self.note = "starting workers"
        self._images = -1
        self._fresh: list[Point] = []
        self._sheets: set[Path] = set()
        self._passed = time.monotonic()
        self._told = len(told(folder))

    def look(self, last: bool = False) -> None:
        """Read what is new. The file may shrink meanwhile, when workers start again from a checkpoint."""
        for line in told(self._folder, self._told):
            say(f"  {line}")
            self._told += 1
        points = read_curve(self._folder / CURVE)
        new = [p for p in points if p["images"] > self._images]
        if new:
            self._images = new[-1]["images"]
            self._fresh += new
            self.note = note_of(points)
        elif points and points[-1]["images"] < self._images:
            self.note = note_of(points)
        self._bar.update(int(points[-1]["images"]) if points else 0, self.note)
        if self._listener and (last or time.monotonic() - self._passed >= _LOG_S):
            self._passed = time.monotonic()
            self._pass_on(self._listener)

    def _pass_on(self, listener: Listener) -> None:
        if self._fresh:
            listener.points(self._fresh)
            self._fresh = []
        for path in sorted((self._folder / SHEETS).glob("*.png")):
            if path not in self._sheets:
                self._sheets.add(path)
                listener.sheet(path)


def read_curve(path: Path) -> list[Point]:
    """The whole points of a curve; a half-written last line is left out, and so is a missing file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1]]


def note_of(points: list[Point]) -> str:
    """The progress line's note, short: loss, held-out loss, share of waiting where it matters, use, cost."""
    if not points:
        return "starting workers"
    last = points[-1]
    pace = last.get("pace", {})
    held = next((p for p in reversed(points) if "validation_loss" in p), {})
    parts = [f"loss {last['loss']:.3f}"]
    if held:
        parts.append(f"val {held.get('validation_loss_average', held['validation_loss']):.3f}")
    if "mfu" in pace:
        parts.append(f"mfu {pace['mfu']:.0%}")
    if pace.get("waiting_share", 0.0) >= 0.02:
        parts.append(f"wait {pace['waiting_share']:.0%}")
    if "cost" in pace:
        parts.append(f"cost {pace['cost']:.2f}/{pace['cost_expected']:.2f}")
    return " ".join(parts)


def _images_of(folder: Path) -> int:
    points = read_curve(folder / CURVE)
    return int(points[-1]["images"]) if points else 0


def _flat(point: Point) -> dict[str, float]:
    values = {**point, **point.get("pace", {})}
    return {k: float(v) for k, v in values.items() if k not in ("images", "pace")}
