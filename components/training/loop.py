"""The one training loop, for every kind of model. Runs on one process or on any number of ranks alike.

Progress is counted in images seen. To resume, run the same command again, with as many workers as there are.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.training import events, order
from components.training.checkpoint import Checkpoints, Mark
from components.training.clock import Clock, Measures
from components.training.engine import Optimiser, joined_group
from components.training.far import Far
from components.training.keeper import Keeper
from components.training.objective import schedule
from components.training.players import Players
from components.training.prefetch import Batches
from components.training.processor import keep_freed_memory


class Task(Protocol):
    """What is trained, and on what. Small and picklable until :meth:`open`.

    A task may also have: ``optimisers() -> dict[str, Optimiser]``, rates by turn of a module with several players
    (:mod:`components.training.turns`); ``at(step, steps)``, called before the batch of a step; ``whole_batch``, true
    where the loss compares the samples of a batch, which then is never cut.
    """

    name: str

    def build(self) -> nn.Module:
        """The module, fresh or with the weights it starts from; ``forward(**batch)`` returns loss and scalars.

        A module may have ``fit_to(device)``, called once it is there, and ``enable_gradient_checkpointing()``.
        """
        ...

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        """Make the samples ready and return how many there are, by bucket; a batch is of one bucket."""
        ...

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        """This rank's part of the global batch; random numbers are drawn for all of it, so ranks agree.

        Samples are the first dimension of every tensor.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """How long and how a task is trained. The first half decides what comes out; the second, never."""

    images: int
    batch_size: int  # global
    optimiser: Optimiser
    warmup: float
    cooldown: float
    ema_decay: float | None
    bf16: bool
    seed: int
    ema_length: float | None = None  # power-function average of this relative length, in place of the decay
    # circumstance
    zero_stage: int = 1
    offload: str = "none"  # or "cpu": master weights and optimiser state in host memory
    accumulate: int = 1  # passes for a step, each on a part of the batch
    gradient_checkpointing: bool = False
    compile: bool = False
    checkpoint_every_s: float = 30.0
    checkpoints: str | None = None  # fsspec URL; None: the training's folder
    keep_last: int = 2
    keep_best: int = 0  # by validation loss
    measures: Measures = Measures()  # noqa: RUF009  (frozen)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return order.steps_for(self.images, self.batch_size)


def train(task: Task, plan: Plan, folder: Path) -> dict[str, Any]:
    """Train to the end of the plan and leave the last checkpoint, curve and summary below ``folder``.

    Every rank must call. A training that was killed goes on from its last checkpoint.

    Returns:
        The summary: steps, images, seconds, images a second, share of the time spent on waiting for data.

    Raises:
        TrainingError: the loss is not finite, the batch cannot be split, or every checkpoint is damaged.
        StoreFullError: no room is left for a checkpoint; the former one is whole.
    """
    keep_freed_memory()
    rank, world = joined_group()
    mine = order.share(plan.batch_size, rank, world)
    torch.manual_seed(plan.seed)  # the same fresh weights on every rank
    module = task.build()
    told = events.teller(folder, quiet=rank > 0)
    checkpoints = Checkpoints(plan.checkpoints or str(folder), plan.keep_last, plan.keep_best, told)
    found = checkpoints.agreed()
    rates = task.optimisers() if hasattr(task, "optimisers") else None
    whole = getattr(task, "whole_batch", False)
    players = Players(module, plan, mine.stop - mine.start, found, rates, whole)
    samples = order.Order(task.open(module, players.device), plan.batch_size, plan.seed)
    far = Far(folder, plan.checkpoints, quiet=rank > 0)
    far.take_up(found)
    clock = Clock(folder, plan, found.mark if found else None, quiet=rank > 0)
    clock.open(task, module, players.device)

    def batch_of(step: int) -> dict[str, Tensor]:
        if hasattr(task, "at"):
            task.at(step, plan.steps)
        return task.batch(samples.batch(step), mine, torch.Generator().manual_seed(plan.seed * 1_000_003 + step))

    def mark(step: int) -> Mark:
        notes = copy.deepcopy(clock.state())
        return Mark(step, players.updates, clock.seconds, world, plan.zero_stage, clock.validation, notes)

    pin = players.device.type == "cuda"
    with (
        contextlib.closing(players),
        Keeper(checkpoints) as keeper,
        Batches(batch_of, clock.first, plan.steps, pin) as batches,
    ):
        for step in range(clock.first, plan.steps):
            with clock.waiting():
                batch = batches.take(step)
            torch.manual_seed(_seed(plan.seed, step, rank))  # of dropout and the like: a function of the step
            scalars = players.step(batch, schedule(step, plan.steps, plan.warmup, plan.cooldown))
            clock.note(step + 1, scalars, players)
            clock.look(step + 1, players)
            keeper.check()
            if clock.due or step + 1 == plan.steps:
                keeper.keep(mark(step + 1), players.state(), far.notes())
                clock.saved()
    dist.barrier()  # rank 0 has written the last one
    summary = clock.close(order_digest=samples.digest(plan.steps) if rank == 0 else "")
    far.leave()
    return summary


def _seed(seed: int, step: int, rank: int) -> int:
    """Of what a forward draws by itself, on one rank in one step."""
    return ((seed * 1_000_003 + step) * 4099 + rank + 1) % 2**63
