"""On a GPU: how much of it a diffusion transformer's training uses.

The transformer of size ``xl`` (more than 600M parameters) on latents of 256 pixels (32 x 32 x 4, so 256 tokens) in
bf16, by ``components.training.loop`` on one process; neither Ray nor MLflow is needed, only torch, diffusers,
transformers and deepspeed. Operations are those of matrix products, convolutions and attention in one forward pass,
three times over for forward and backward (Chowdhery et al. 2022, "PaLM", appendix B: model FLOPs utilisation, so
that nothing computed twice is counted twice); the peak is the maker's figure for dense bf16.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.harness import Row, limit, not_run

FIGURES = ("model FLOPs utilisation of a GPU",)
FIGURE = FIGURES[0] + ": transformer of at least 600M parameters, 256 px latents, bf16"
SIDE, CHANNELS, TOKENS, WIDTH = 32, 4, 77, 1024  # of the latents, of a prompt, of the text states
WARM, STEPS, PER_RUN = 20, 120, 20  # steps before the measurement, in all, and to a figure
BATCHES = (256, 192, 128, 96, 64, 32)  # the first that fits is taken
RIVAL = "the best published (NeMo, H100)"


def waiting() -> list[Row]:
    """The row as it is where there is no GPU."""
    why = "run it with PARTS=gpu" if torch.cuda.is_available() else "this machine has no GPU; run PARTS=gpu on one"
    return [not_run(FIGURE, "%", ">= 50 %", why, RIVAL)]


def rows(size: str = "xl", batches: tuple[int, ...] = BATCHES) -> list[Row]:
    """The row, or why it was not run."""
    if not torch.cuda.is_available():
        return waiting()
    from components.training.peak import peak_flops

    operations, parameters = cost(size)
    peak, where = peak_flops(torch.device("cuda"), bf16=True)
    for batch in batches:
        try:
            rates = speeds(size, batch)
            break
        except torch.cuda.OutOfMemoryError:
            print(f"  a batch of {batch} does not fit", flush=True)
            torch.cuda.empty_cache()
    else:
        return [not_run(FIGURE, "%", ">= 50 %", f"a batch of {batches[-1]} does not fit", RIVAL)]
    used = [100 * rate * 3 * operations / peak for rate in rates]
    memory = torch.cuda.max_memory_allocated() / 2**30
    note = (
        f"{torch.cuda.get_device_name()}: {statistics.median(rates):,.0f} img/s, batch {batch}, "
        f"{parameters / 1e6:.0f}M parameters, {3 * operations / 1e9:,.0f} GFLOP a picture, forward and backward; AdamW "
        f"and moving average included; peak {peak / 1e12:.0f} TFLOP/s ({where}); {memory:.0f} GiB at most"
    )
    row = limit(FIGURE, "%", used, 50.0, note=note, limit_name=RIVAL)
    return [Row(**{**vars(row), "rival": 52.0, "ratio": row.ours / 52.0})]


def section(size: str) -> Any:
    """The recipe's section of the network."""
    from components.contracts.recipe import Denoiser

    return Denoiser.model_validate({"family": "dit", "size": size, "muon_rate": 0.0})


def cost(size: str) -> tuple[int, int]:
    """Operations of one picture's forward pass, and the number of parameters."""
    from components.models.denoiser import make_denoiser, predict
    from components.models.sizes import flops_of, parameters_of

    with torch.device("meta"):
        model = make_denoiser(section(size), CHANNELS, SIDE, WIDTH)
        noisy, states = torch.zeros(1, CHANNELS, SIDE, SIDE), torch.zeros(1, TOKENS, WIDTH)
        mask, times = torch.ones(1, TOKENS, dtype=torch.bool), torch.zeros(1)
        return flops_of(lambda: predict(model, noisy, times, states, mask)), parameters_of(model)


@dataclass
class Drawn:
    """A task of normal latents and text states; it notes when every batch was asked for."""

    size: str
    name: str = "denoiser"
    device: Any = None
    moments: list[float] = field(default_factory=list)

    def build(self) -> nn.Module:
        from components.models.denoiser import make_denoiser
        from components.training.task_denoiser import Denoise

        return Denoise(make_denoiser(section(self.size), CHANNELS, SIDE, WIDTH), section(self.size))

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        self.device = device
        return [1_000_000]

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.moments.append(time.perf_counter())
        count = len(indices[mine])
        data, noise = torch.randn(2, count, CHANNELS, SIDE, SIDE, generator=draws)
        states = torch.randn(count, TOKENS, WIDTH, generator=draws)
        mask = torch.ones(count, TOKENS, dtype=torch.bool)
        return {"data": data, "noise": noise, "times": torch.rand(count, generator=draws), "states": states,
                "mask": mask}  # fmt: skip


def speeds(size: str, batch: int, steps: int = STEPS, warm: int = WARM, per_run: int = PER_RUN) -> list[float]:
    """Images a second of every ``per_run`` steps after the first ``warm``."""
    from components.training.engine import Optimiser
    from components.training.loop import Plan, train

    task = Drawn(size)
    plan = Plan(
        images=steps * batch, batch_size=batch, optimiser=Optimiser(1e-4, 0.0, 0.01, 1.0), warmup=0.1, cooldown=0.1,
        ema_decay=0.9999, bf16=True, seed=0, zero_stage=0, compile=torch.cuda.is_available(), checkpoint_every_s=1e9,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(task, plan, Path(folder))
    marks = task.moments[warm::per_run]
    return [per_run * batch / (later - earlier) for earlier, later in pairwise(marks)]
