"""One rank that trains a module of some million weights under each ZeRO stage, and says how much memory that took.

As a script: ``python -m tests.components.training.memory_worker RANK WORLD STORE MUON STAGES``; prints a line of JSON
a stage. Measured: how far the process's peak resident memory (``VmHWM``) is above that before the module is built.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

BATCH, WORDS, WIDTH = 64, 2000, 1600


class Wide(nn.Module):
    """A table for AdamW, matrices for Muon that are quick to make orthogonal, and activations of some megabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.down = nn.ModuleList(nn.Linear(8 * WIDTH, 32, bias=False) for _ in range(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = self.embed(x).flatten(1)
        for _ in range(2):
            rows = torch.tanh(rows) * 1.1
        return {"loss": torch.stack([layer(rows).square().mean() for layer in self.down]).sum()}


def batch(count: int) -> dict[str, Tensor]:
    return {"x": torch.randint(0, WORDS, (count, 8))}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _measure(stage: int, muon: bool) -> int:
    from components.training.engine import Optimiser
    from components.training.loop import Plan
    from components.training.players import Players

    gc.collect()
    before = _status("VmRSS")
    rates = Optimiser(1e-3, 0.02 if muon else 0.0, 0.0, 1.0)
    plan = Plan(
        images=100, batch_size=BATCH * dist.get_world_size(), optimiser=rates, warmup=0.1, cooldown=0.5, ema_decay=0.9,
        bf16=False, seed=0, zero_stage=stage,
    )  # fmt: skip
    players = Players(Wide(), plan, BATCH, None)
    players.step(batch(BATCH), 1.0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what follows
    for _ in range(2):
        players.step(batch(BATCH), 1.0)
    peak = _status("VmHWM") - before
    players.close()
    return peak


if __name__ == "__main__":
    rank, world, store, muon = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "muon"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    _measure(1, muon)  # nor what is allocated once
    for stage in map(int, sys.argv[5].split(",")):
        print(json.dumps({"stage": stage, "peak": _measure(stage, muon)}), flush=True)
    dist.barrier()
