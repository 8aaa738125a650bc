"""What a training shows of itself while it runs: time, the loss curve, and the refusal to go on from nonsense."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from components.contracts.errors import TrainingError
from components.training import checkpoint

if TYPE_CHECKING:
    from components.training.loop import Plan

CURVE = "curve.jsonl"
SUMMARY = "summary.json"


class Clock:
    """Time, the loss curve, and the refusal to go on with a loss that is not a number."""

    def __init__(self, folder: Path, plan: Plan, mark: checkpoint.Mark | None, quiet: bool) -> None:
        self._plan, self._quiet, self._folder = plan, quiet, folder
        self.first = mark.step if mark else 0
        self._before = mark.seconds if mark else 0.0
        self._started = self._saved = time.monotonic()
        self._waited = self._in_wait = 0.0
        self._sums: dict[str, float] = {}
        self._count = 0
        self._every = max(1, plan.steps // 200)
        if not quiet:
            _cut_curve(folder / CURVE, self.first * plan.batch_size)

    @property
    def seconds(self) -> float:
        """Of training so far, those of killed runs up to their checkpoint included."""
        return self._before + time.monotonic() - self._started

    @property
    def due(self) -> bool:
        """A checkpoint should be written."""
        return time.monotonic() - self._saved >= self._plan.checkpoint_every_s

    def saved(self) -> None:
        self._saved = time.monotonic()

    def waiting(self) -> Clock:
        return self

    def __enter__(self) -> None:
        self._in_wait = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited += time.monotonic() - self._in_wait

    def note(self, done: int, scalars: dict[str, Tensor]) -> None:
        """Take in a step's scalars; write a point of the curve every so many steps."""
        values = {k: float(v.detach()) for k, v in scalars.items()}
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"The loss is {values['loss']} after {done * self._plan.batch_size} images",
                expected="a finite number",
                remedy="lower the section's learning rates, or train with --set train.precision=fp32",
            )
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1
        if not self._quiet and (done % self._every == 0 or done == self._plan.steps):
            point = {k: round(v / self._count, 6) for k, v in self._sums.items()}
            line = {"images": done * self._plan.batch_size, "seconds": round(self.seconds, 2), **point}
            with (self._folder / CURVE).open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._sums, self._count = {}, 0

    def close(self, **more: Any) -> dict[str, Any]:
        """The summary, also written to the folder by rank 0."""
        here = time.monotonic() - self._started
        trained = (self._plan.steps - self.first) * self._plan.batch_size
        summary = {
            "steps": self._plan.steps,
            "images": self._plan.steps * self._plan.batch_size,
            "seconds": round(self.seconds, 2),
            "images_per_second": round(trained / max(here, 1e-9), 1),
            "waiting_share": round(self._waited / max(here, 1e-9), 4),
            "plan": asdict(self._plan),
            **more,
        }
        if not self._quiet:
            (self._folder / SUMMARY).write_text(json.dumps(summary))
        return summary


def _cut_curve(path: Path, images: int) -> None:
    """Drop what a killed run wrote after its last checkpoint."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if _images(line) <= images]
        path.write_text("".join(line + "\n" for line in kept))


def _images(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError):
        return math.inf  # half a line
