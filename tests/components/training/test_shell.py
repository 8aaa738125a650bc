"""Ray Train around the loop: failures of workers and nodes, elastic numbers of them, and refusals."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from components.contracts.errors import TrainingError
from components.contracts.recipe import Run
from components.runtime.cluster import ONE_MACHINE, apply_quiet_environment, ray_session
from components.training import checkpoint
from components.training.events import told
from components.training.loop import train
from components.training.shell import check_workers, checkpoints_url, run_training
from tests.components.training.tiny import PLAN, Tiny, weights_of

RUN = Run(cpus=2, object_store_mb=100, workers=2)
OFTEN = replace(PLAN, images=24 * 8, checkpoint_every_s=0.0)


@pytest.fixture(scope="module")
def ray_there() -> Iterator[None]:
    with ray_session(RUN):
        yield


def _lines(ids: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in ids.glob("*.jsonl") for line in path.read_text().splitlines()]


def _when(seen: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """A thread that does ``then`` once ``seen`` is true."""

    def watch() -> None:
        deadline = time.monotonic() + 180
        while not seen():
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def _step(folder: Path) -> int:
    found = checkpoint.latest(folder)
    return found[0].step if found else 0


def _as_one_process_makes_it(folder: Path, summary: dict[str, Any], calm: Path) -> None:
    """Up to rounding: two ranks sum in another order than one. Bit for bit is shown in test_elastic.py."""
    assert summary["order_digest"] == train(Tiny(), OFTEN, calm)["order_digest"]
    for name in ("weights.safetensors", "model.safetensors"):
        theirs = weights_of(calm, name)
        for key, value in weights_of(folder, name).items():
            assert torch.allclose(value, theirs[key], rtol=1e-3, atol=1e-4), (name, key)


@pytest.mark.integration
@pytest.mark.slow
def test_a_killed_worker_costs_what_came_after_the_last_checkpoint(ray_there: None, tmp_path: Path) -> None:
    (ids := tmp_path / "ids").mkdir()
    (folder := tmp_path / "killed").mkdir()
    (calm := tmp_path / "calm").mkdir()
    victims: list[psutil.Process] = []
    reached: list[int] = []

    def kill() -> None:
        victims.append(psutil.Process(next(line["pid"] for line in _lines(ids) if line["first"] > 0)))
        reached.append(_step(folder))
        victims[0].send_signal(signal.SIGKILL)

    watcher = _when(lambda: _step(folder) >= 5, kill)
    summary = run_training(Tiny(pause_s=0.1, ids=ids), OFTEN, folder, RUN)
    watcher.join()
    assert victims and not victims[0].is_running(), "no worker was killed"
    assert 5 <= reached[0] < 24
    assert any("failed; going on from the last checkpoint (1 of 2)" in line for line in told(folder))
    again = [line["step"] for line in _lines(ids) if line["first"] > 0 and line["pid"] != victims[0].pid]
    assert reached[0] <= min(again) <= reached[0] + 3 and max(again) == 23
    _as_one_process_makes_it(folder, summary, calm)


@pytest.mark.integration
@pytest.mark.slow
def test_refusals_are_final_and_other_errors_are_tried_again(ray_there: None, tmp_path: Path) -> None:
    (ids := tmp_path / "ids").mkdir()
    (folder := tmp_path / "spoilt").mkdir()
    with pytest.raises(TrainingError, match=r"loss is nan"):
        run_training(Tiny(spoil_at=3, ids=ids), PLAN, folder, RUN)
    assert len([line for line in _lines(ids) if line["step"] == 0]) == 2  # one a worker: it was tried once
    assert told(folder) == []

    (ids := tmp_path / "ids-again").mkdir()
    (folder := tmp_path / "failing").mkdir()
    with pytest.raises(TrainingError, match=r"Training the tiny failed: .*Stopped"):
        run_training(Tiny(stop_at=3, ids=ids), PLAN, folder, RUN.model_copy(update={"max_failures": 1}))
    assert len([line for line in _lines(ids) if line["step"] == 0]) == 4
    assert len(told(folder)) == 1


@pytest.mark.integration
@pytest.mark.slow
def test_a_lost_node_leaves_an_elastic_training_with_fewer_workers(tmp_path: Path) -> None:
    """Two nodes of one processor each; one is killed, and the training ends on the other."""
    import ray
    from ray.cluster_utils import Cluster

    apply_quiet_environment()
    os.environ.update(ONE_MACHINE)
    (folder := tmp_path / "elastic").mkdir()
    (calm := tmp_path / "calm").mkdir()
    run = Run(cpus=2, object_store_mb=100, workers=2, min_workers=1)
    small = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={**small, "include_dashboard": False})
    try:
        second = cluster.add_node(**small)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        worlds: list[int] = []

        def lose() -> None:
            worlds.append((checkpoint.latest(folder) or pytest.fail())[0].world)
            cluster.remove_node(second, allow_graceful=False)

        watcher = _when(lambda: _step(folder) >= 4, lose)
        summary = run_training(Tiny(pause_s=0.1), OFTEN, folder, run)
        watcher.join()
        assert worlds == [2], "no node was lost"
        assert not second.any_processes_alive()
        mark, _ = checkpoint.latest(folder) or pytest.fail("no checkpoint")
        assert (mark.step, mark.world) == (24, 1)
    finally:
        ray.shutdown()
        cluster.shutdown()
    _as_one_process_makes_it(folder, summary, calm)


@pytest.mark.parametrize(
    ("fields", "batch", "message"),
    [
        ({"workers": 3}, 12, r"3 workers of 1 threads do not fit on run.cpus=2"),
        ({"workers": 2, "min_workers": 3}, 12, r"min_workers 3 is above run.workers 2"),
        ({"workers": 4, "min_workers": 2, "cpus": 4}, 16, r"16 cannot be split among 3 workers.*multiple of 12"),
        ({"workers": 2, "accumulate": 3}, 8, r"8 cannot be split among 2 workers in 3 parts each.*multiple of 6"),
    ],
)
def test_numbers_of_workers_that_cannot_be_are_refused(fields: dict[str, Any], batch: int, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        check_workers(batch, Run(**fields))


def test_numbers_of_workers_that_can_be_are_taken() -> None:
    check_workers(12, Run(workers=2, min_workers=1, cpus=2))
    check_workers(8, Run(workers=2, accumulate=3, cpus=2), whole_batch=True)
    check_workers(7, Run(workers=5, launcher="here"))


def test_every_training_has_a_place_of_its_own_for_checkpoints() -> None:
    folder = Path("/runs/demo/store/denoiser/0123abcd/_state")
    assert checkpoints_url(folder, Run()) is None
    assert checkpoints_url(folder, Run(checkpoints="s3://bucket/marks/")) == "s3://bucket/marks/denoiser-0123abcd"
