"""The loop on one process: it learns, it stops at nonsense, and a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from components.contracts.errors import TrainingError
from components.training import checkpoint
from components.training.loop import train
from components.training.order import Order
from tests.components.training.tiny import PLAN, Tiny, weights_of

ROOT = Path(__file__).resolve().parents[3]


def test_training_learns_and_says_what_it_did(tmp_path: Path) -> None:
    summary = train(Tiny(), replace(PLAN, images=1600), tmp_path)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["loss"] < curve[0]["loss"] / 4
    assert summary["steps"] == 200 and summary["images"] == curve[-1]["images"] == 1600
    assert summary["order_digest"] == Order(50, 8, PLAN.seed).digest(200)
    assert 0 <= summary["waiting_share"] < 1
    weights, average = weights_of(tmp_path), weights_of(tmp_path, "average.safetensors")
    assert weights.keys() == average.keys() and any(not torch.equal(weights[k], average[k]) for k in weights)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is nan after 48 images.*finite.*learning rates"):
        train(Tiny(spoil_at=5), PLAN, tmp_path)
    assert checkpoint.latest(tmp_path) is None


def _process(folder: Path, steps: int, pause: float) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.components.training.tiny", str(folder), str(steps), str(pause)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_killed_training_resumes_to_the_same_end(tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command ends with the order, the steps and the weights of a calm run."""
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    killed.mkdir()
    calm.mkdir()
    steps = 60
    process = _process(killed, steps, 0.05)
    deadline = time.monotonic() + 60
    while checkpoint.latest(killed) is None or (killed / "curve.jsonl").read_text().count("\n") < 20:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    mark, _ = checkpoint.latest(killed) or pytest.fail("the checkpoint is gone")
    assert 0 < mark.step < steps and not (killed / "summary.json").exists()

    again = _process(killed, steps, 0.0)
    assert again.wait(60) == 0, again.stderr and again.stderr.read().decode()[-2000:]
    undisturbed = _process(calm, steps, 0.0)
    assert undisturbed.wait(60) == 0, undisturbed.stderr and undisturbed.stderr.read().decode()[-2000:]
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (killed, calm)]
    assert ends[0]["steps"] == ends[1]["steps"] == steps
    assert ends[0]["order_digest"] == ends[1]["order_digest"]
    points = [[json.loads(line) for line in (f / "curve.jsonl").read_text().splitlines()] for f in (killed, calm)]
    assert [p["images"] for p in points[0]] == [p["images"] for p in points[1]]
    for name in ("weights.safetensors", "average.safetensors"):
        theirs = weights_of(calm, name)
        assert all(torch.equal(w, theirs[k]) for k, w in weights_of(killed, name).items())


def test_half_a_checkpoint_is_not_seen(tmp_path: Path) -> None:
    train(Tiny(), PLAN, tmp_path)
    found = checkpoint.latest(tmp_path)
    (tmp_path / "step-99999999" / "engine").mkdir(parents=True)
    assert checkpoint.latest(tmp_path) == found and found is not None and found[0].step == PLAN.steps


def test_another_zero_stage_goes_on_from_the_weights(tmp_path: Path) -> None:
    """The optimiser's moments cannot be split anew, but step, order, weights and average are kept."""
    train(Tiny(), replace(PLAN, images=160), tmp_path)
    before = weights_of(tmp_path)
    summary = train(Tiny(), replace(PLAN, images=168, zero_stage=0), tmp_path)
    assert summary["steps"] == 21
    after = weights_of(tmp_path)
    assert all((after[k] - before[k]).abs().max() < 0.1 for k in before)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_trains_alike(stage: int, tmp_path: Path) -> None:
    """On one rank the stages differ in bookkeeping only, for filters and for the average too."""
    reference = tmp_path / "one"
    other = tmp_path / "other"
    reference.mkdir()
    other.mkdir()
    train(Tiny(), PLAN, reference)
    train(Tiny(), replace(PLAN, zero_stage=stage), other)
    for name in ("weights.safetensors", "average.safetensors"):
        theirs = weights_of(reference, name)
        for key, value in weights_of(other, name).items():
            assert torch.allclose(value, theirs[key], atol=2e-3), (name, key)
