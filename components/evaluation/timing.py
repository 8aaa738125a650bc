"""How long a model takes to draw, on the hardware that it is asked on: a circumstance of an assessment."""

from __future__ import annotations

import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.runtime.precision import name_of

if TYPE_CHECKING:
    from components.models.families import ImageGenerator

BATCHED = 16  # pictures of a call, where they are drawn together
_RUNS = {"alone": 3, "batched": 2}


def time_drawing(
    generator: ImageGenerator,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    guidance_scale: float,
    device: str,
    batch: int = BATCHED,
) -> dict[str, Any]:
    """Seconds an image, one at a time and many together: medians with the least and the greatest of the runs.

    Nothing else should run on the machine meanwhile. ``hardware``, ``device``, ``dtype`` and ``threads`` say what the
    numbers hold for. A call before the first run warms up.
    """
    import torch

    def seconds(count: int) -> float:
        asked, noise = (prompts * count)[:count], (seeds * count)[:count]
        begun = time.perf_counter()
        generator.generate(asked, noise, steps=steps, guidance_scale=guidance_scale)
        return (time.perf_counter() - begun) / count

    found: dict[str, Any] = {}
    seconds(1)
    for name, count in (("alone", 1), ("batched", batch)):
        runs = [seconds(count) for _ in range(_RUNS[name])]
        found[name] = {
            "seconds_an_image": statistics.median(runs), "low": min(runs), "high": max(runs), "n": len(runs),
            "batch": count,
        }  # fmt: skip
    return found | {
        "hardware": hardware(device), "device": device, "dtype": name_of(device), "threads": torch.get_num_threads(),
    }  # fmt: skip


def hardware(device: str) -> str:
    """Name of the processor or GPU."""
    import torch

    if device == "cuda":
        return str(torch.cuda.get_device_name())
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor() or platform.machine()
