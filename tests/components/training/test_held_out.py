"""The held-out loss: fixed pictures, noise and times, and the same number whatever the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from components.contracts.recipe import Recipe
from components.data.world import WorldSpec
from components.runtime.storage import Store
from components.training.held_out import HeldOut, choose, fixed_times, is_empty
from components.training.task_autoencoder import AutoencoderTask
from tests.components.training.datasets import make_dataset


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 200))
def test_samples_are_chosen_once_in_batches_of_one_bucket(sizes: list[int], limit: int) -> None:
    batches = choose(sizes, limit)
    chosen = np.concatenate(batches)
    assert len(chosen) == len(set(chosen.tolist())) == min(limit, sum(sizes))
    ends = np.cumsum(sizes)
    for batch in batches:
        assert len(batch) <= 16 and len(set(np.searchsorted(ends, batch, "right").tolist())) == 1
    assert all((a == b).all() for a, b in zip(batches, choose(sizes, limit), strict=True))


def test_times_are_the_middles_of_equal_parts() -> None:
    assert fixed_times(4).tolist() == [0.125, 0.375, 0.625, 0.875]


@dataclass
class _Rows:
    """Samples are numbers; the loss is their mean plus noise."""

    sizes: tuple[int, ...]

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        return list(self.sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(len(indices), generator=draws)
        return {"x": (torch.from_numpy(indices).float() + noise)[mine]}


class _Mean:
    def evaluate(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": batch["x"].mean(), "largest": batch["x"].max()}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=3), st.integers(1, 90), st.integers(2, 5))
def test_ranks_share_the_batches_and_call_equally_often(sizes: list[int], limit: int, world: int) -> None:
    task, device = _Rows(tuple(sizes)), torch.device("cpu")
    alone = HeldOut.open(task, nn.Identity(), device, limit, 0, 1)
    parts = [HeldOut.open(task, nn.Identity(), device, limit, rank, world) for rank in range(world)]
    assert len({len(part._batches) for part in parts}) == 1
    weights = [weight for part in parts for _, weight in part._batches]
    assert sum(weights) == min(limit, sum(sizes))
    total = sum(float(batch["x"].mean()) * weight for part in parts for batch, weight in part._batches)
    wanted = alone.measure(_Mean(), device)["loss"]
    assert abs(total / sum(weights) - wanted) < 1e-4 * max(1.0, abs(wanted))


def test_a_real_task_has_its_held_out_rows_and_an_empty_split_is_known(tmp_path: Path) -> None:
    config = Recipe.model_validate({"name": "x", "train": {"autoencoder": {"channels": [8, 16]}}}).train.autoencoder
    store, spec = Store(str(tmp_path)), WorldSpec(image_size=16)
    dataset, rows = make_dataset(store, spec, 60, holdout=0.4)
    task = AutoencoderTask(config, dataset.local(), 16)
    twin = task.held_out()
    held = sum(row["split"] == "holdout" for row in rows)
    assert sum(twin.open(nn.Identity(), torch.device("cpu"))) == held and not is_empty(twin)
    batches = HeldOut.open(twin, nn.Identity(), torch.device("cpu"), 10, 0, 1)._batches
    again = HeldOut.open(replace(twin), nn.Identity(), torch.device("cpu"), 10, 0, 1)._batches
    assert sum(weight for _, weight in batches) == 10
    assert all(torch.equal(a["noise"], b["noise"]) for (a, _), (b, _) in zip(batches, again, strict=True))
    empty, _ = make_dataset(store, spec, 20, seed=3, holdout=0.0)
    assert is_empty(replace(twin, dataset=empty.local()))
