"""What is measured of a training beside its loss, and the curve that it is written to."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_POINTS = 200  # of the curve


@dataclass(frozen=True)
class Measures:
    """What is measured beside the loss. Nothing of it changes the weights."""

    validation_points: int = 0  # moments of the training at which the held-out loss is taken, the last step included
    validation_images: int = 128  # held-out pictures at most
    sheet_images: int = 0  # pictures on each sample sheet, drawn at the same moments
    flops_per_image: float = 0.0  # of forward and backward pass; 0: no utilisation is shown
    price_per_device_hour: float | None = None
    divergence: float = 8.0  # times the running median of the loss; 0: only a loss that is no number stops
    memory_bytes: int = 0  # of a worker, as estimated beforehand

    def steps(self, steps: int) -> tuple[int, ...]:
        """Steps (counted from 1) after which the held-out loss is taken; each is a point of the curve."""
        every = points_every(steps)
        wanted = [round(steps * i / self.validation_points / every) * every for i in range(1, self.validation_points)]
        return tuple(sorted({s for s in wanted if 0 < s < steps} | ({steps} if self.validation_points else set())))


def points_every(steps: int) -> int:
    """Steps from one point of the curve to the next."""
    return max(1, steps // _POINTS)


def memory_of(device: torch.device) -> float:
    """Most bytes held so far: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def cut_curve(path: Path, images: int) -> None:
    """Drop what a killed run wrote after its last checkpoint."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if _images(line) <= images]
        path.write_text("".join(line + "\n" for line in kept))


def _images(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError):
        return math.inf  # half a line


def without_pace(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The curve as an artifact keeps it: without what depends on the machine."""
    return [{k: v for k, v in point.items() if k not in ("seconds", "pace")} for point in points]
