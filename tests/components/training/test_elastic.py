"""Real processes over gloo: what one set of ranks and one ZeRO stage began, any other goes on with."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from components.training import checkpoint
from components.training.loop import train
from components.training.order import Order
from tests.components.training.tiny import PLAN, Job, Tiny, run_all, start, weights_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS, STOP = 8, 3
ADAM = {"adam_rate": 1e-2, "muon_rate": 0.0, "weight_decay": 0.01, "gradient_clip": 1.0}
WAYS: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero2-offload": {"zero_stage": 2, "offload": "cpu"},
    "zero3-offload": {"zero_stage": 3, "offload": "cpu"},
    "zero1-accumulate": {"zero_stage": 1, "accumulate": 2},
    "zero1-adam": {"zero_stage": 1, "optimiser": ADAM},
    "zero3-adam": {"zero_stage": 3, "optimiser": ADAM},
}
LOOKED_AT = ("zero0", "zero1", "zero3", "zero2-offload")
RICH = ("zero1-accumulate", "zero3")  # also with layers that draw or that count what they saw
FILES = ("weights.safetensors", "model.safetensors", "optimiser.safetensors")


def _plan(**fields: Any) -> dict[str, Any]:
    return {"images": STEPS * PLAN.batch_size, **fields}


def _distance(one: Path, other: Path, name: str) -> float:
    """The largest difference between two checkpoints' tensors, as a share of the largest number in them."""
    theirs = weights_of(other, name)
    mine = weights_of(one, name)
    assert mine.keys() == theirs.keys()
    return max(float((w - theirs[k]).abs().max() / (theirs[k].abs().max() + 1e-8)) for k, w in mine.items())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For every way: a whole training on two ranks, one stopped in the middle, and that one gone on with."""
    root = tmp_path_factory.mktemp("ways")
    jobs = []
    for way, fields in WAYS.items():
        for plain in (True, False) if way in RICH else (True,):
            at, task = str(root / f"{way}-{'plain' if plain else 'rich'}"), {"plain": plain}
            jobs.append(Job(f"{at}/whole", _plan(**fields), task))
            often = {"checkpoint_every_s": 0.0}
            jobs.append(Job(f"{at}/stopped", _plan(**fields, **often), {**task, "stop_at": STOP}))
    looks = [Job(str(root / f"{way}-plain" / "look"), _plan(**WAYS[way]), looks=True) for way in LOOKED_AT]
    run_all([*jobs, *looks], 2, root / "logs")
    for folder in root.glob("*/stopped"):
        mark, _ = checkpoint.latest(folder) or pytest.fail(f"no checkpoint in {folder}")
        assert mark.step == STOP and mark.world == 2
        shutil.copytree(folder, folder.with_name("again"))
    again = [Job(str(Path(job.folder).with_name("again")), job.plan, {"plain": job.task["plain"]}) for job in jobs[::2]]
    run_all(again, 2, root / "logs-again")
    return root


@pytest.mark.parametrize("way", WAYS)
def test_the_same_workers_go_on_bit_for_bit(way: str, folders: Path) -> None:
    """Weights, average, moments and curve, with dropout and batch norm too."""
    for kind in ("plain", "rich") if way in RICH else ("plain",):
        whole, again = folders / f"{way}-{kind}" / "whole", folders / f"{way}-{kind}" / "again"
        for name in FILES:
            theirs = weights_of(whole, name)
            assert all(torch.equal(w, theirs[k]) for k, w in weights_of(again, name).items()), (kind, name)
        curves = [[json.loads(line) for line in (f / "curve.jsonl").read_text().splitlines()] for f in (whole, again)]
        assert [p["loss"] for p in curves[0]] == [p["loss"] for p in curves[1]] and len(curves[0]) == STEPS
        assert [p["gradient_norm"] for p in curves[0]] == [p["gradient_norm"] for p in curves[1]]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_agrees_with_one_process(way: str, folders: Path, tmp_path: Path) -> None:
    """Two ranks sum in another order than one; the average under each stage is that of a single process."""
    optimiser = replace(PLAN.optimiser, **ADAM) if way.endswith("adam") else PLAN.optimiser
    plan = replace(PLAN, **{**_plan(), "optimiser": optimiser, "zero_stage": 0})
    train(Tiny(), plan, tmp_path)
    for name in FILES:
        assert _distance(folders / f"{way}-plain" / "whole", tmp_path, name) < 2e-3, name
    points = [
        json.loads((f / "curve.jsonl").read_text().splitlines()[-1]) for f in (tmp_path, folders / f"{way}-plain/whole")
    ]
    assert points[0]["gradient_norm"] == pytest.approx(points[1]["gradient_norm"], rel=1e-3)


@pytest.mark.parametrize("way", LOOKED_AT)
def test_the_average_is_shown_and_taken_away_on_every_rank(way: str, folders: Path) -> None:
    reports = [json.loads((folders / f"{way}-plain/look/losses-{rank}.json").read_text()) for rank in (0, 1)]
    weights, average = reports[0]["expected"]
    assert abs(weights - average) > 1e-3
    for report in reports:
        assert report["found"] == pytest.approx([weights, average, weights], rel=1e-5)


@pytest.mark.parametrize(("way", "then"), [("zero3", "zero1"), ("zero1", "zero0"), ("zero2-offload", "zero3-offload"),
                                           ("zero0", "zero2-offload"), ("zero1-adam", "zero3-adam")])  # fmt: skip
def test_another_stage_on_one_worker_goes_on(way: str, then: str, folders: Path, tmp_path: Path) -> None:
    """Moments too: with fresh ones the ends would lie more than ten times as far apart."""
    shutil.copytree(folders / f"{way}-plain" / "stopped", tmp_path / "moved")
    fields = {k: v for k, v in WAYS[then].items() if k != "optimiser"}
    optimiser = replace(PLAN.optimiser, **ADAM) if then.endswith("adam") else PLAN.optimiser
    train(Tiny(), replace(PLAN, **{**_plan(**fields), "optimiser": optimiser}), tmp_path / "moved")
    for name in FILES:
        assert _distance(tmp_path / "moved", folders / f"{way}-plain" / "whole", name) < 2e-3, name


def test_killed_at_any_step_and_gone_on_with_by_one_two_or_four(tmp_path: Path) -> None:
    """SIGKILL to both ranks; the samples of every step are the same whoever trains it, and so is the loss curve."""
    plan, killed = _plan(images=24 * 8, checkpoint_every_s=0.0), tmp_path / "killed"
    processes = start([Job(str(killed), plan, {"pause_s": 0.05})], 2, tmp_path / "logs")
    deadline = time.monotonic() + 600
    while not ((found := checkpoint.latest(killed)) and found[0].step >= 5):
        assert all(p.poll() is None for p in processes), [p.read_text() for p in (tmp_path / "logs").glob("*.log")]
        assert time.monotonic() < deadline, "no checkpoint of step 5 within two minutes"
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2
    mark, _ = checkpoint.latest(killed) or pytest.fail("the checkpoint is gone")
    assert 5 <= mark.step < 24 and not (killed / "summary.json").exists()

    jobs = {}
    for world in (1, 2, 4):
        (ids := tmp_path / f"ids-{world}").mkdir()
        shutil.copytree(killed, tmp_path / f"by-{world}")
        jobs[world] = Job(str(tmp_path / f"by-{world}"), plan, {"ids": str(ids)})
    jobs[1].run()
    run_all([jobs[2], Job(str(tmp_path / "calm"), plan, {})], 2, tmp_path / "logs-2")
    run_all([jobs[4]], 4, tmp_path / "logs-4")

    order = Order(50, 8, PLAN.seed)
    for world in (1, 2, 4):
        lines = [
            json.loads(line)
            for path in sorted((tmp_path / f"ids-{world}").glob(f"*-of-{world}.jsonl"))
            for line in path.read_text().splitlines()
        ]
        for step in range(mark.step, 24):
            parts = sorted((line["first"], line["ids"]) for line in lines if line["step"] == step)
            assert len(parts) == world
            assert [i for _, ids in parts for i in ids] == order.batch(step).tolist()
        assert {line["step"] for line in lines} == set(range(mark.step, 24))
        same = _curve(tmp_path / f"by-{world}"), _curve(tmp_path / "calm")
        assert [p["images"] for p in same[0]] == [p["images"] for p in same[1]]
        losses = [torch.tensor([p["loss"] for p in curve]) for curve in same]
        if world == 2:
            assert torch.equal(*losses)
        assert torch.allclose(*losses, rtol=1e-3, atol=1e-5)
        for name in FILES:
            limit = 0.0 if world == 2 else 2e-3
            assert _distance(tmp_path / f"by-{world}", tmp_path / "calm", name) <= limit, (world, name)


def _curve(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
