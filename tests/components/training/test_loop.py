"""The loop on one process: it learns, it stops at nonsense, and a stopped run goes on where it was."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.contracts.errors import TrainingError
from components.training import checkpoint
from components.training.events import told
from components.training.far import fetch
from components.training.loop import train
from components.training.order import Order
from tests.components.training.tiny import PLAN, Plain, Stopped, Tiny, weights_of

FILES = ("weights.safetensors", "model.safetensors", "optimiser.safetensors")
OFTEN = replace(PLAN, checkpoint_every_s=0.0)


def _equal(one: Path, other: Path) -> None:
    for name in FILES:
        theirs = weights_of(other, name)
        assert all(torch.equal(w, theirs[k]) for k, w in weights_of(one, name).items()), name


def _stopped(folder: Path, at: int, plan: Any = OFTEN, **task: Any) -> None:
    folder.mkdir(exist_ok=True)
    with pytest.raises(Stopped):
        train(Tiny(stop_at=at, **task), plan, folder)


def test_training_learns_and_says_what_it_did(tmp_path: Path) -> None:
    summary = train(Tiny(), replace(PLAN, images=1600), tmp_path)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["loss"] < curve[0]["loss"] / 4
    assert summary["steps"] == 200 and summary["images"] == curve[-1]["images"] == 1600
    assert summary["order_digest"] == Order(50, 8, PLAN.seed).digest(200)
    assert 0 <= summary["waiting_share"] < 1
    weights, average = weights_of(tmp_path), weights_of(tmp_path, "model.safetensors")
    assert weights.keys() == average.keys() and any(not torch.equal(weights[k], average[k]) for k in weights)
    assert checkpoint.final_weights(tmp_path).keys() == average.keys()


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is nan after 48 images"):
        train(Tiny(spoil_at=5), PLAN, tmp_path)
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_stopped_training_goes_on_to_the_same_end(stage: int, tmp_path: Path) -> None:
    """Bit for bit, with dropout and batch norm, and the curve too."""
    plan, task = replace(OFTEN, zero_stage=stage), {"plain": False}
    _stopped(tmp_path / "stopped", 11, plan, **task)
    assert (checkpoint.latest(tmp_path / "stopped") or pytest.fail())[0].step == 11
    (tmp_path / "calm").mkdir()
    train(Tiny(plain=False), plan, tmp_path / "stopped")
    train(Tiny(plain=False), plan, tmp_path / "calm")
    _equal(tmp_path / "stopped", tmp_path / "calm")
    curves = [
        [(p["images"], p["loss"]) for p in map(json.loads, (f / "curve.jsonl").read_text().splitlines())]
        for f in (tmp_path / "stopped", tmp_path / "calm")
    ]
    assert curves[0] == curves[1]


def test_a_finished_training_is_not_made_again(tmp_path: Path) -> None:
    train(Tiny(), PLAN, tmp_path)
    before = weights_of(tmp_path)
    assert train(Tiny(stop_at=0), PLAN, tmp_path)["steps"] == PLAN.steps  # no batch is asked for
    assert all(torch.equal(w, before[k]) for k, w in weights_of(tmp_path).items())


def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(tmp_path: Path) -> None:
    for name in ("hurt", "calm"):
        _stopped(tmp_path / name, 9)
    victim = tmp_path / "hurt" / "step-00000009" / "model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-4] + b"\0\0\0\1")
    for name in ("hurt", "calm"):
        train(Tiny(), OFTEN, tmp_path / name)
    assert any("checkpoint of step 9 is damaged" in line for line in told(tmp_path / "hurt"))
    _equal(tmp_path / "hurt", tmp_path / "calm")
    for folder in (tmp_path / "hurt").glob("step-*"):
        (folder / "optimiser.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match="All 2 checkpoints"):
        train(Tiny(), OFTEN, tmp_path / "hurt")


def test_a_training_knows_the_checkpoints_of_another(tmp_path: Path) -> None:
    _stopped(tmp_path, 4)
    with pytest.raises(TrainingError, match=r"is of another model.*delete"):
        train(Tiny(plain=False), OFTEN, tmp_path)


def test_checkpoints_elsewhere_bring_the_curve_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has seen nothing of the training goes on with it, and a third learns how it went."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = replace(OFTEN, checkpoints=f"file://{tmp_path / 'far'}", measures=OFTEN.measures)
    _stopped(tmp_path / "one", 7, plan)
    assert not list((tmp_path / "one").glob("step-*"))
    (tmp_path / "two").mkdir()
    train(Tiny(), plan, tmp_path / "two")
    (tmp_path / "three").mkdir()
    fetch(str(plan.checkpoints), tmp_path / "three")
    assert json.loads((tmp_path / "three" / "summary.json").read_text())["steps"] == 30
    images = [json.loads(line)["images"] for line in (tmp_path / "three" / "curve.jsonl").read_text().splitlines()]
    assert images == [8 * step for step in range(1, 31)]
    (tmp_path / "calm").mkdir()
    train(Tiny(), OFTEN, tmp_path / "calm")
    _equal(tmp_path / "far", tmp_path / "calm")


def test_old_checkpoints_go_and_the_best_stay(tmp_path: Path) -> None:
    train(Tiny(), replace(OFTEN, keep_last=3), tmp_path)
    assert sorted(int(p.name[5:]) for p in tmp_path.glob("step-*")) == [28, 29, 30]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accumulate": 3}, r"8 samples of a batch cannot be cut into 3 equal parts"),
        ({"zero_stage": 0, "offload": "cpu"}, r"offload=cpu with run.zero_stage 0.*zero_stage=1"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=message):
        train(Tiny(), replace(PLAN, **fields), tmp_path)


class _Contrasting(Tiny):
    whole_batch = True


def test_a_batch_that_is_compared_within_is_not_cut(tmp_path: Path) -> None:
    for name, task in (("whole", Tiny()), ("compared", _Contrasting())):
        (tmp_path / name).mkdir()
        train(task, replace(PLAN, images=64, accumulate=1 if name == "whole" else 3), tmp_path / name)
    _equal(tmp_path / "whole", tmp_path / "compared")


class _Deep(Plain):
    """Counts how often its filter is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.spares, self.passes = False, 0

    def enable_gradient_checkpointing(self) -> None:
        self.spares = True

    def _features(self, x: Tensor) -> Tensor:
        self.passes += 1
        return torch.tanh(self.filter(x)).flatten(1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        from torch.utils.checkpoint import checkpoint as spared

        seen = spared(self._features, x, use_reentrant=False) if self.spares else self._features(x)
        return {"loss": nn.functional.mse_loss(self.head(seen).float(), y)}


class _DeepTask(Tiny):
    def build(self) -> nn.Module:
        self.built = _Deep()
        return self.built


def test_gradient_checkpointing_computes_twice_and_changes_nothing(tmp_path: Path) -> None:
    passes = []
    for spares in (False, True):
        task, folder = _DeepTask(), tmp_path / str(spares)
        folder.mkdir()
        train(task, replace(PLAN, images=64, gradient_checkpointing=spares), folder)
        passes.append(task.built.passes)
    assert passes == [8, 16]
    _equal(tmp_path / "False", tmp_path / "True")


def test_the_train_step_fits_a_screen() -> None:
    source = (Path(__file__).resolve().parents[3] / "components/training/loop.py").read_text()
    body = re.search(r"^def train\(.*?(?=^def )", source, re.M | re.S)
    assert body and body.group().count("\n") <= 70


def test_power_function_averages_are_taken_up(tmp_path: Path) -> None:
    plan = replace(OFTEN, ema_length=0.1)
    _stopped(tmp_path / "stopped", 6, plan)
    shutil.copytree(tmp_path / "stopped", tmp_path / "decayed")
    train(Tiny(), plan, tmp_path / "stopped")
    (tmp_path / "calm").mkdir()
    train(Tiny(), plan, tmp_path / "calm")
    _equal(tmp_path / "stopped", tmp_path / "calm")
    train(Tiny(), OFTEN, tmp_path / "decayed")
    theirs = weights_of(tmp_path / "calm", "model.safetensors")
    assert any(not torch.equal(w, theirs[k]) for k, w in weights_of(tmp_path / "decayed", "model.safetensors").items())
