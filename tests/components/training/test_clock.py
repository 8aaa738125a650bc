"""What a training shows: a curve, a held-out loss that compares, and the refusal to go on from nonsense."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from components.contracts.errors import TrainingError
from components.training import checkpoint
from components.training.clock import Measures
from components.training.divergence import Divergence
from components.training.engine import Optimiser
from components.training.loop import train
from components.training.measures import points_every, without_pace
from tests.components.training.tiny import PLAN, Tiny

MEASURED = replace(
    PLAN, images=400,
    measures=Measures(validation_points=4, validation_images=20, sheet_images=3, flops_per_image=1e8,
                      price_per_device_hour=36.0),
)  # fmt: skip


@dataclass
class Watched(Tiny):
    """Has held-out samples, and draws."""

    draws: int = 0

    def held_out(self) -> Tiny:
        return Tiny(name="held out")

    def sheet(self, module: nn.Module, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
        assert not module.training and not torch.is_grad_enabled()
        self.draws += 1
        return np.full((count, 8, 8, 3), 7, np.uint8), [f"prompt {i}" for i in range(count)]


def _curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def test_measuring_shows_much_and_changes_no_weight(tmp_path: Path) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    plain.mkdir()
    watched.mkdir()
    train(Tiny(), replace(MEASURED, measures=Measures()), plain)
    task = Watched()
    summary = train(task, MEASURED, watched)

    curve, bare = _curve(watched), _curve(plain)
    held = [point for point in curve if "validation_loss" in point]
    assert [point["images"] for point in held] == [12 * 8, 25 * 8, 38 * 8, 50 * 8]
    assert held[-1]["images"] == 400 and held[-1]["validation_loss"] < held[0]["validation_loss"]
    assert held[0]["validation_loss_average"] != held[0]["validation_loss"]
    pace = curve[-1]["pace"]
    assert pace["images_per_second"] > 0 and 0 <= pace["waiting_share"] < 1 and pace["mfu"] > 0
    assert pace["cost_expected"] == pytest.approx(pace["cost"], rel=1e-6)  # at the end
    assert curve[-1]["gradient_norm"] > 0 and pace["memory_gb"] > 0
    assert task.draws == 4 and len(list((watched / "sheets").glob("*.png"))) == 4
    assert (watched / "sheets" / "prompts.txt").read_text() == "prompt 0\nprompt 1\nprompt 2\n"
    assert summary["mfu"] > 0 and summary["peak_flops"] > 0 and 0 < summary["measuring_share"] < 1

    assert [p["loss"] for p in curve] == [p["loss"] for p in bare]
    theirs = checkpoint.final_weights(plain)
    assert all(torch.equal(w, theirs[k]) for k, w in checkpoint.final_weights(watched).items())
    assert all(not {"pace", "seconds"} & p.keys() for p in without_pace(curve))


@dataclass
class Slow(Watched):
    """Draws for far longer than it trains."""

    def sheet(self, module: nn.Module, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
        time.sleep(0.5)
        return super().sheet(module, count)


def test_a_look_after_the_last_step_is_not_taken_off_the_steps(tmp_path: Path) -> None:
    began = time.monotonic()
    summary = train(Slow(), replace(MEASURED, images=8), tmp_path)
    wall = time.monotonic() - began
    assert 0 <= summary["waiting_share"] < 1 and summary["measuring_share"] >= 0.5 / wall
    assert 0 < summary["images_per_second"] < 1e6


@dataclass
class Drawing(Watched):
    """Draws with the module itself, as the denoiser's task does."""

    def sheet(self, module: nn.Module, count: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
        draws = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            loss = module(torch.randn(count, 2, 4, 4, generator=draws), torch.zeros(count, 3))["loss"]
        assert torch.isfinite(loss)
        return super().sheet(module, count)


@pytest.mark.parametrize("stage", [2, 3])
def test_sheets_are_drawn_under_every_stage_and_spoil_nothing(stage: int, tmp_path: Path) -> None:
    ends = []
    for name, measures in (("plain", Measures()), ("drawn", MEASURED.measures)):
        (tmp_path / name).mkdir()
        train(Drawing(), replace(MEASURED, zero_stage=stage, measures=measures), tmp_path / name)
        ends.append(checkpoint.final_weights(tmp_path / name))
    assert all(torch.equal(weight, ends[1][key]) for key, weight in ends[0].items())
    assert len(list((tmp_path / "drawn" / "sheets").glob("*.png"))) == 4


def test_the_held_out_loss_is_the_same_for_the_same_weights(tmp_path: Path) -> None:
    """Whatever was trained on before, and however often it is asked."""
    ends = []
    for name, points in (("once", 1), ("often", 10)):
        (tmp_path / name).mkdir()
        measures = replace(MEASURED.measures, validation_points=points, sheet_images=0)
        train(Watched(), replace(MEASURED, measures=measures), tmp_path / name)
        ends.append(_curve(tmp_path / name)[-1])
    assert ends[0]["validation_loss"] == ends[1]["validation_loss"]


def test_points_of_the_held_out_loss_are_points_of_the_curve() -> None:
    for steps in (1, 3, 30, 281, 5000):
        for points in (1, 5, 40):
            found = Measures(validation_points=points).steps(steps)
            assert found[-1] == steps and len(found) <= points + 1
            assert all(step % points_every(steps) == 0 for step in found[:-1])
    assert Measures().steps(30) == ()


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    plan = replace(PLAN, checkpoint_every_s=0.0)
    with pytest.raises(
        TrainingError, match=r"loss is nan after 72 images; the last good checkpoint is step-\d+, of \d+ im"
    ):
        train(Tiny(spoil_at=8), plan, tmp_path)
    found = checkpoint.latest(tmp_path)
    assert found is not None and 0 < found[0].step < 9
    weights = checkpoint.final_weights(tmp_path)
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_rate_that_is_far_too_high_is_stopped(tmp_path: Path) -> None:
    """Not only when numbers overflow: the loss is far above where it began long before."""
    high = Optimiser(30.0, 0.0, 0.0, 1e9)
    plan = replace(PLAN, images=4000, warmup=0.0, cooldown=0.01, optimiser=high, ema_decay=None)
    with pytest.raises(TrainingError, match=r"steps above 8 times .* after 1\d\d images; there is no checkpoint yet"):
        train(Tiny(), plan, tmp_path)


def test_divergence_needs_a_high_loss_for_long() -> None:
    watch = Divergence(8.0)
    assert all(watch.check(1.0) is None for _ in range(40))
    assert all(watch.check(20.0) is None for _ in range(19))
    assert watch.check(1.0) is None  # a spike is forgiven
    assert all(watch.check(20.0) is None for _ in range(19))
    assert "20 steps above 8 times 1" in (watch.check(20.0) or "")
    assert Divergence(8.0).check(float("inf")) == "The loss is inf"
    off = Divergence(0.0)
    assert all(off.check(1.0 if step < 40 else 1e9) is None for step in range(200))


def test_divergence_goes_on_where_it_was() -> None:
    one, two = Divergence(8.0), Divergence(8.0)
    losses = [3.0, *[1.0 + 0.01 * i for i in range(90)]]
    for loss in losses:
        one.check(loss)
    for loss in losses[:50]:
        two.check(loss)
    resumed = Divergence(8.0, two.state())
    for loss in losses[50:]:
        resumed.check(loss)
    assert resumed.state() == one.state()


def test_a_loss_that_falls_from_a_high_start_is_no_divergence() -> None:
    watch = Divergence(8.0)
    assert all(watch.check(loss) is None for loss in [100.0, *[0.1] * 30, *[50.0] * 60])  # below where it began
