"""A task of a few hundred numbers, and a process that trains it: for tests of loop, engine and checkpoints.

As a script: ``python -m tests.components.training.tiny FOLDER STEPS PAUSE_S [ZERO_STAGE]``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.training.engine import Optimiser
from components.training.loop import Plan

PLAN = Plan(
    images=30 * 8, batch_size=8, optimiser=Optimiser(1e-2, 0.02, 0.0, 1.0), warmup=0.1, cooldown=0.5,
    ema_decay=0.9, bf16=False, seed=3, zero_stage=1, checkpoint_every_s=1e9,
)  # fmt: skip


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.mse_loss(self.head(torch.tanh(self.filter(x)).flatten(1)).float(), y)
        return {"loss": loss}

    def finished(self) -> Any:
        return self.head


@dataclass
class Tiny:
    """Targets from a fixed random map; ``spoil_at`` makes the loss not a number from that call on."""

    name: str = "tiny"
    pause_s: float = 0.0
    spoil_at: int | None = None
    calls: int = 0

    def build(self) -> nn.Module:
        return Regression()

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        draws = torch.Generator().manual_seed(9)
        self.x = torch.randn(50, 2, 4, 4, generator=draws)
        self.y = self.x.flatten(1) @ torch.randn(32, 3, generator=draws) / 6
        return [50]

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        time.sleep(self.pause_s)
        self.calls += 1
        noise = 0.01 * torch.randn(len(indices), 3, generator=draws)
        chosen = torch.from_numpy(indices)
        y = self.y[chosen] + noise
        if self.spoil_at is not None and self.calls > self.spoil_at:
            y = y * float("nan")
        return {"x": self.x[chosen][mine], "y": y[mine]}


def weights_of(folder: Path, name: str = "weights.safetensors") -> dict[str, Tensor]:
    """The weights of the newest checkpoint."""
    from safetensors.torch import load_file

    from components.training.checkpoint import latest

    found = latest(folder)
    assert found is not None
    return dict(load_file(found[1] / name))


if __name__ == "__main__":
    from components.training.loop import train

    folder, steps, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    stage = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    plan = replace(PLAN, images=steps * PLAN.batch_size, checkpoint_every_s=0.2 if pause else 1e9, zero_stage=stage)
    train(Tiny(pause_s=pause), plan, folder)
