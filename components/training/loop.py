"""The one training loop, for every kind of model. Runs on one process or on any number of ranks alike.

Progress is counted in images seen. To resume, run the same command again.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.contracts.errors import TrainingError
from components.training import checkpoint, order
from components.training.ema import Ema
from components.training.engine import Engine, Optimiser, joined_group
from components.training.objective import schedule

CURVE = "curve.jsonl"
SUMMARY = "summary.json"
_AGREE_EVERY = 8  # steps between two questions whether a checkpoint is due


class Task(Protocol):
    """What is trained, and on what. Small and picklable until :meth:`open`."""

    name: str

    def build(self) -> nn.Module:
        """The module, fresh or with the weights it starts from; ``forward(**batch)`` returns loss and scalars."""
        ...

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        """Make the samples ready and return how many there are, by bucket; a batch is of one bucket."""
        ...

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        """This rank's part of the global batch; random numbers are drawn for all of it, so ranks agree."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long and how a task is trained. Everything but the last line is identity."""

    images: int
    batch_size: int  # global
    optimiser: Optimiser
    warmup: float
    cooldown: float
    ema_decay: float | None
    bf16: bool
    seed: int
    zero_stage: int = 1
    checkpoint_every_s: float = 30.0

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return order.steps_for(self.images, self.batch_size)


def train(task: Task, plan: Plan, folder: Path) -> dict[str, Any]:
    """Train to the end of the plan and leave the last checkpoint, curve and summary below ``folder``.

    Returns:
        The summary: steps, images, seconds, images a second, share of the time spent on waiting for data.

    Raises:
        TrainingError: the loss is not finite, or the batch cannot be split.
    """
    rank, world = joined_group()
    mine = order.share(plan.batch_size, rank, world)
    torch.manual_seed(plan.seed)  # the same fresh weights on every rank
    module = task.build()
    checkpoint.restore_weights(folder, module)
    engine = Engine(module, plan.optimiser, plan.zero_stage, plan.batch_size // world, plan.bf16)
    ema = Ema(engine.shards(), plan.ema_decay) if plan.ema_decay is not None else None
    mark = checkpoint.restore(folder, engine, ema, world, plan.zero_stage)
    samples = order.Order(task.open(module, engine.device), plan.batch_size, plan.seed)
    clock = _Clock(folder, plan, mark, quiet=rank > 0)

    def keep(step: int) -> None:
        done = checkpoint.Mark(step, ema.updates if ema else 0, world, plan.zero_stage, clock.seconds)
        checkpoint.save(folder, engine, ema, done)

    for step in range(clock.first, plan.steps):
        draws = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        with clock.waiting():
            batch = task.batch(samples.batch(step), mine, draws)
        scalars = engine(batch)
        engine.step(scalars["loss"], schedule(step, plan.steps, plan.warmup, plan.cooldown))
        if ema:
            ema.update(engine.shards())
        clock.note(step + 1, scalars)
        if step + 1 < plan.steps and _agreed(step, clock.due):
            keep(step + 1)
            clock.saved()
    if not mark or mark.step < plan.steps:
        keep(plan.steps)
    return clock.close(order_digest=samples.digest(plan.steps) if rank == 0 else "")


def _agreed(step: int, due: bool) -> bool:
    """What rank 0 thinks, asked every few steps: clocks differ, and all ranks must save together."""
    if step % _AGREE_EVERY:
        return False
    answer = torch.tensor([int(due)])
    if dist.get_backend() == "nccl":
        answer = answer.cuda()
    dist.broadcast(answer, 0)
    return bool(answer.item())


class _Clock:
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

    def waiting(self) -> _Clock:
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
