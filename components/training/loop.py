"""The one training loop, for every kind of model. Runs on one process or on any number of ranks alike.

Progress is counted in images seen. To resume, run the same command again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.training import checkpoint, order
from components.training.clock import Clock
from components.training.ema import Ema
from components.training.engine import Engine, Optimiser, joined_group
from components.training.objective import schedule

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
    clock = Clock(folder, plan, mark, quiet=rank > 0)

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
