"""Prompt fidelity on the embedded world after so many core-minutes of the denoiser's training.

The recipes ``fidelity32`` and ``fidelity64`` are trained and judged as ``atelier assess`` does. What is counted is the
processor time, user and system, of all workers of the denoiser's training from their start to their end, so that a
busy machine measures what an idle one does; the wall time is in the note. Text encoder, autoencoder and the encoding
of latents come before and are not counted.

The run is kept below ``runs/``: a call that was stopped goes on, one that had ended measures nothing anew. Remove
``runs/{recipe}`` to train again.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Row, not_run

ROOT = Path(__file__).parents[2]
ASKED = {  # recipe: figure, target, core-minutes
    "fidelity32": ("world prompt fidelity, single objects, 32 px, 5 min of denoiser on two cores", 0.95, 10),
    "fidelity64": ("world prompt fidelity, pairs and counts, 64 px, 60 min of denoiser on two cores", 0.80, 120),
}
FIGURES = tuple(figure for figure, _, _ in ASKED.values())
RIVALS = {"fidelity32": ("the first prototype", 0.83), "fidelity64": ("stated limit", None)}


def waiting() -> list[Row]:
    """The rows as they are before they were ever run."""
    return [
        not_run(figure, "of 1", f">= {target:g} of 1", f"run it with PARTS={name}")
        for name, (figure, target, _) in ASKED.items()
    ]


def rows(name: str, root: Path = ROOT / "runs") -> list[Row]:
    """The row of one of the recipes."""
    from components.runtime.precision import name_of
    from components.runtime.recipes import load_recipe
    from components.runtime.stage import Context
    from pipelines.assess import assess

    spent = root / name / "denoiser-seconds.json"
    with Context.of(load_recipe(name, [f"run.root={root}"])) as ctx, _metered(spent):
        found = assess(ctx)
    metrics = json.loads(found.path("metrics.json").read_text())
    model = ctx.store.by_digest("model", found.manifest.inputs["model"])
    if not spent.exists():
        raise RuntimeError(f"{ctx.home} holds a denoiser whose training was not metered: remove that folder")
    images = model.manifest.evidence["trainings"]["denoiser"]["images"]
    return [judged(name, metrics, json.loads(spent.read_text()), images, name_of("cpu"))]


def judged(name: str, metrics: dict[str, Any], time_of: dict[str, float], images: int, precision: str) -> Row:
    """The row of a recipe from its assessment's ``metrics.json`` and the seconds of the denoiser's training."""
    figure, target, allowed = ASKED[name]
    fidelity, stamp, minutes = metrics["known"]["fidelity"], metrics["stamp"], time_of["processor"] / 60
    note = (
        f"`atelier assess --recipe {name}`: {minutes:.1f} core-minutes of {allowed} allowed "
        f"({time_of['wall'] / 60:.1f} min wall), {precision}, {images:,} images; N = {fidelity['n']} prompts, none of "
        f"them a training caption, interval Wilson 95%; exact grader; {stamp['steps']} steps, guidance "
        f"{stamp['guidance_scale']:g}, {stamp['sampler']}; protocol {fidelity['stamp'][:12]}"
    )
    holds = fidelity["value"] >= target and minutes <= allowed
    rival, value, ratio = _against(name, fidelity["value"])
    interval = (fidelity["low"], fidelity["high"])
    return Row(figure, "of 1", fidelity["value"], rival, value, ratio, f">= {target:g} of 1", holds, interval, 1, note)


def _against(name: str, value: float) -> tuple[str, float | None, float | None]:
    rival, figure = RIVALS[name]
    return rival, figure, figure and value / figure


@contextlib.contextmanager
def _metered(path: Path) -> Iterator[None]:
    """Add wall and processor seconds of every training of a denoiser within the block to the file at ``path``."""
    from components.training import stages

    real = stages.run_training

    def metered(task: Any, *arguments: Any, **more: Any) -> Any:
        if task.name != "denoiser":
            return real(task, *arguments, **more)
        meter, began = Meter(os.getpid(), "RayTrainWorker"), time.monotonic()
        try:
            return real(task, *arguments, **more)
        finally:
            before = json.loads(path.read_text()) if path.exists() else {"processor": 0.0, "wall": 0.0}
            path.write_text(
                json.dumps({"processor": before["processor"] + meter.stop(),
                            "wall": before["wall"] + time.monotonic() - began})
            )  # fmt: skip

    stages.run_training = metered
    try:
        yield
    finally:
        stages.run_training = real


class Meter:
    """Processor seconds of the processes below ``parent`` whose command holds ``word``, looked at every half second.

    The last half second of a process that ends may be missing.
    """

    def __init__(self, parent: int, word: str) -> None:
        self._parent, self._word = parent, word
        self._seconds: dict[tuple[int, str], float] = {}
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def stop(self) -> float:
        """End the watch and return the sum."""
        self._ended.set()
        self._watcher.join()
        return sum(self._seconds.values())

    def _watch(self) -> None:
        while True:
            self._look()
            if self._ended.wait(0.5):
                return

    def _look(self) -> None:
        seen = {int(p.name): stat for p in Path("/proc").iterdir() if p.name.isdigit() and (stat := _stat(p))}
        for number, (parent, born, seconds, command) in seen.items():
            while parent in seen and parent != self._parent:
                parent = seen[parent][0]
            if parent == self._parent and self._word in command:
                self._seconds[number, born] = seconds


def _stat(process: Path) -> tuple[int, str, float, str] | None:
    """Parent, start time, processor seconds and command line of a process; None when it is gone."""
    with contextlib.suppress(OSError):
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK")
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return int(fields[1]), fields[19], (int(fields[11]) + int(fields[12])) / ticks, command
    return None
