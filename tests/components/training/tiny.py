"""A task of a few hundred numbers, and processes that train it: for tests of loop, engine and checkpoints.

As a script: ``python -m tests.components.training.tiny JOBS.json``, on one process or, with torchrun's variables in
the environment, on one of several ranks. The file holds a list of :class:`Job` fields, done one after the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.training.engine import Optimiser
from components.training.loop import Plan
from tests.ports import unused_port

ROOT = Path(__file__).resolve().parents[3]
PLAN = Plan(
    images=30 * 8, batch_size=8, optimiser=Optimiser(1e-2, 0.02, 0.0, 1.0), warmup=0.1, cooldown=0.5,
    ema_decay=0.9, bf16=False, seed=3, zero_stage=1, checkpoint_every_s=1e9,
)  # fmt: skip


class Regression(nn.Module):
    """Three matrices of unlike shapes, so that parts of ZeRO cut through them; with dropout, so that draws matter."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.middle = nn.Linear(4 * 16, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        seen = nn.functional.dropout(torch.tanh(self.norm(self.filter(x))), 0.1, self.training)
        loss = nn.functional.mse_loss(self.head(self.middle(seen.flatten(1))).float(), y)
        return {"loss": loss}

    def finished(self) -> Any:
        return self.head


class Plain(nn.Module):
    """Without anything that depends on how the batch is shared out: every number of workers trains it alike."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.head(torch.tanh(self.filter(x)).flatten(1)).float(), y)}

    def finished(self) -> Any:
        return self.head


class Stopped(Exception):
    """The task was told to stop here."""


@dataclass
class Tiny:
    """Targets from a fixed random map.

    ``spoil_at`` makes the loss not a number from that step on; ``stop_at`` ends the training in an error at that step;
    ``ids`` is a folder for what each rank saw in each step.
    """

    name: str = "tiny"
    pause_s: float = 0.0
    spoil_at: int | None = None
    stop_at: int | None = None
    ids: Path | None = None
    plain: bool = True
    step: int = -1

    def build(self) -> nn.Module:
        return Plain() if self.plain else Regression()

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        draws = torch.Generator().manual_seed(9)
        self.x = torch.randn(50, 2, 4, 4, generator=draws)
        self.y = self.x.flatten(1) @ torch.randn(32, 3, generator=draws) / 6
        return [50]

    def at(self, step: int, steps: int) -> None:
        self.step = step

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        time.sleep(self.pause_s)
        if self.step == self.stop_at:
            raise Stopped
        noise = 0.01 * torch.randn(len(indices), 3, generator=draws)
        chosen = torch.from_numpy(indices)
        y = self.y[chosen] + noise
        if self.spoil_at is not None and self.step >= self.spoil_at:
            y = y * float("nan")
        if self.ids:
            line = {"step": self.step, "first": mine.start, "ids": indices[mine].tolist(), "pid": os.getpid()}
            with (self.ids / f"{dist.get_rank()}-of-{dist.get_world_size()}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return {"x": self.x[chosen][mine], "y": y[mine]}


def weights_of(folder: Path, name: str = "weights.safetensors") -> dict[str, Tensor]:
    """A file of the newest checkpoint; the model's where that one is not there, as without an average."""
    from safetensors.torch import load_file

    from components.training.checkpoint import MODEL, latest

    found = latest(folder)
    assert found is not None
    return dict(load_file(found[1] / (name if (found[1] / name).exists() else MODEL)))


@dataclass
class Job:
    """One training of a process: plan's fields that differ from :data:`PLAN`, and fields of :class:`Tiny`."""

    folder: str
    plan: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)

    looks: bool = False  # no training: see :func:`look`

    def run(self) -> None:
        from components.training.loop import train

        Path(self.folder).mkdir(parents=True, exist_ok=True)
        task = {**self.task, "ids": Path(self.task["ids"])} if "ids" in self.task else self.task
        rates = {"optimiser": Optimiser(**self.plan["optimiser"])} if "optimiser" in self.plan else {}
        (look if self.looks else train)(Tiny(**task), replace(PLAN, **{**self.plan, **rates}), Path(self.folder))


def look(task: Tiny, plan: Plan, folder: Path) -> None:
    """Six steps; then the losses of one batch with the weights, with the average shown in their place, and again.

    Each rank writes them, with what plain modules make of the gathered weights and average: ``losses-<rank>.json``.
    """
    from components.training.checkpoint import MODEL, WEIGHTS
    from components.training.engine import joined_group
    from components.training.order import Order, share
    from components.training.players import Players

    rank, world = joined_group()
    mine = share(plan.batch_size, rank, world)
    torch.manual_seed(plan.seed)
    players = Players(module := task.build(), plan, mine.stop - mine.start, None)
    order = Order(task.open(module, players.device), plan.batch_size, plan.seed)
    for step in range(6):
        players.step(task.batch(order.batch(step), mine, torch.Generator().manual_seed(step)), 1.0)
    whole = task.batch(order.batch(6), slice(0, plan.batch_size), torch.Generator().manual_seed(6))
    found = [float(players.evaluate(whole)["loss"])]
    with players.averaged():
        found.append(float(players.evaluate(whole)["loss"]))
    found.append(float(players.evaluate(whole)["loss"]))
    state = players.state()
    expected = []
    for name in (WEIGHTS, MODEL) if rank == 0 else ():
        plain = task.build()
        plain.load_state_dict(state[name])
        expected.append(float(plain.eval()(**whole)["loss"].detach()))
    (folder / f"losses-{rank}.json").write_text(json.dumps({"found": found, "expected": expected}))
    players.close()


def start(jobs: Sequence[Job], world: int, at: Path) -> list[subprocess.Popen[bytes]]:
    """``world`` processes on loopback that do the jobs together."""
    at.mkdir(parents=True, exist_ok=True)
    port = unused_port()
    listed = at / f"jobs-{port}.json"
    listed.write_text(json.dumps([asdict(job) for job in jobs]))
    processes = []
    for rank in range(world):
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        }  # fmt: skip
        command = [sys.executable, "-W", "ignore", "-m", "tests.components.training.tiny", str(listed)]
        with (at / f"rank-{port}-{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
    return processes


def finish(processes: Sequence[subprocess.Popen[bytes]], at: Path, timeout: float = 1500.0) -> None:
    """Wait until all have ended well; on failure none is left behind, and their logs are shown."""
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            if process.wait(max(0.1, deadline - time.monotonic())):
                break
        codes = [process.poll() for process in processes]
        if any(code != 0 for code in codes):
            time.sleep(0.5)
            logs = "\n".join(log.read_text()[-3000:] for log in sorted(at.glob("rank-*.log")))
            raise AssertionError(f"exit codes {codes}\n{logs}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def run_all(jobs: Sequence[Job], world: int, at: Path) -> None:
    """:func:`start` and :func:`finish`."""
    finish(start(jobs, world, at), at)


if __name__ == "__main__":
    for one in json.loads(Path(sys.argv[1]).read_text()):
        with contextlib.suppress(Stopped):
            Job(**one).run()
