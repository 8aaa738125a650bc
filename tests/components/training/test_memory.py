"""The estimate of memory against what real processes take, and operations against those counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from components.training.memory import Pass, estimate, fake_pass
from tests.components.training.memory_worker import BATCH, Wide, batch

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["muon", "adam"])
def test_the_estimate_is_within_15_percent_of_what_two_workers_take(optimiser: str, tmp_path: Path) -> None:
    """Peak resident memory, in all four ZeRO stages, with the average."""
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "WORLD_SIZE": "2",
        # freed blocks go back at once: what is resident is what is held
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.components.training.memory_worker"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "store"), optimiser, "0,1,2,3"], cwd=ROOT,
            env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=1500) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), ends[0][1][-2000:] + ends[1][1][-2000:]
    found = fake_pass(Wide, batch, BATCH, bf16=False)
    for line in (line for line in ends[0][0].splitlines() if line.startswith("{")):
        measured = json.loads(line)
        wanted = estimate(
            found, zero_stage=measured["stage"], workers=2, muon=optimiser == "muon", average=True,
            nearby=True,
        ).device  # fmt: skip
        print(measured["stage"], f"{wanted / 1e6:.0f} MB estimated, {measured['peak'] / 1e6:.0f} MB measured")
        assert abs(wanted / measured["peak"] - 1) < 0.15, (optimiser, measured, wanted)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 128, bias=False), nn.Linear(128, 32, bias=False)
        self.embed = nn.Embedding(10, 64)
        self.embed.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.second(self.first(self.embed(x))).square().mean()}


def test_operations_and_weights_are_counted() -> None:
    found = fake_pass(Dense, lambda count: {"x": torch.zeros(count, dtype=torch.long)}, 16, bf16=False)
    forward = 2 * 16 * (64 * 128 + 128 * 32)
    # backward: two products a layer, but none for the input of the first, which needs no gradient
    assert found.flops == forward + 2 * 16 * (64 * 128) + 2 * 2 * 16 * (128 * 32)
    assert found.parameters == found.matrices == 64 * 128 + 128 * 32 and found.frozen_bytes == 10 * 64 * 4
    assert found.largest == 64 * 128
    assert found.peak_bytes >= found.kept_bytes >= 4 * 16 * (64 + 128)


def test_attention_is_counted_without_its_square_matrix() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = x * self.weight
            return {"loss": nn.functional.scaled_dot_product_attention(x, x, x).mean()}

    found = fake_pass(Attend, lambda count: {"x": torch.zeros(count, 2, 512, 32)}, 3, bf16=False)
    product = 2 * 3 * 2 * 512 * 512 * 32
    assert found.flops in (2 * product + 4 * product, 2 * product + 5 * product)  # backward recomputes one
    assert found.peak_bytes < 3 * 2 * 512 * 512 * 4


def test_bf16_holds_less_than_fp32_and_recomputing_less_than_keeping() -> None:
    from components.contracts.recipe import Recipe
    from components.training.probes import Shapes, denoiser_probe

    recipe = Recipe.model_validate({"name": "x", "train": {"denoiser": {"family": "dit", "width": 64, "depth": 8}}})
    probe = denoiser_probe(recipe, Shapes.of(recipe))
    fp32, bf16, less = (
        fake_pass(probe.build, probe.example, 32, half, recompute)
        for half, recompute in ((False, False), (True, False), (False, True))
    )
    assert bf16.kept_bytes < fp32.kept_bytes and less.kept_bytes < fp32.kept_bytes / 2
    assert less.flops > fp32.flops == bf16.flops


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from([1, 2, 4, 64]), st.booleans(), st.booleans())
def test_more_workers_and_higher_stages_never_keep_more(
    parameters: int, activations: int, workers: int, muon: bool, average: bool
) -> None:
    found = Pass(parameters, parameters // 2, parameters // 8, 0, activations + 4 * parameters, activations, 0.0)
    states = [
        estimate(found, zero_stage=stage, workers=workers, muon=muon, average=average).states for stage in range(4)
    ]
    more = [
        estimate(found, zero_stage=stage, workers=2 * workers, muon=muon, average=average).states for stage in range(4)
    ]
    assert all(b <= a for a, b in zip(states, more, strict=True))
    assert states[1] == states[2] and (workers == 1 or states[2] + 4 >= states[3])  # stage 3 keeps its gradients
    cut = estimate(found, zero_stage=2, workers=workers, muon=muon, average=average, offload=True)
    assert cut.states + cut.host == states[2]
