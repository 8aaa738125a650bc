"""Ray Train around the loop: failures of workers and nodes, elastic numbers of them, and refusals."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.contracts.errors import TrainingError
from components.contracts.recipe import Run
from components.runtime.cluster import ray_session
from components.training.events import told
from components.training.room import room_of
from components.training.shell import check_workers, checkpoints_url, run_training
from tests.components.training.tiny import PLAN, Tiny
from tests.components.training.watching import OFTEN, require_as_one_process, step_of, when

RUN = Run(cpus=2, object_store_mb=100, workers=2)


@pytest.fixture(scope="module")
def ray_there() -> Iterator[None]:
    with ray_session(RUN):
        yield


def _lines(ids: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in ids.glob("*.jsonl") for line in path.read_text().splitlines()]


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
        reached.append(step_of(folder))
        victims[0].send_signal(signal.SIGKILL)

    watcher = when(lambda: step_of(folder) >= 5, kill)
    summary = run_training(Tiny(pause_s=0.3, ids=ids), OFTEN, folder, RUN)
    watcher.join()
    assert victims and not victims[0].is_running(), "no worker was killed"
    assert 5 <= reached[0] < 24
    assert any("failed; going on from the last checkpoint (1 of 2)" in line for line in told(folder))
    again = [line["step"] for line in _lines(ids) if line["first"] > 0 and line["pid"] != victims[0].pid]
    assert reached[0] <= min(again) <= reached[0] + 3 and max(again) == 23
    require_as_one_process(folder, summary, calm)


@pytest.mark.integration
@pytest.mark.slow
def test_a_training_here_has_no_processes_beside_it_that_serve_nothing(ray_there: None, tmp_path: Path) -> None:
    """Ray Data's are ended, and made anew by it; Ray Train's are not started; nobody reads the logs."""
    import ray

    assert len(ray.data.range(4).map(lambda row: row).take_all()) == 4
    left = when(lambda: {"_StatsActor", "_AutoscalingCoordinatorActor"} <= _actors(), lambda: None)
    left.join()
    assert {"_StatsActor", "_AutoscalingCoordinatorActor"} <= _actors()
    seen: set[str] = set()
    watcher = when(lambda: step_of(tmp_path) >= 2, lambda: seen.update(_actors(), _commands()))
    run_training(Tiny(pause_s=0.3), OFTEN, tmp_path, RUN)
    watcher.join()
    assert {"RayTrainWorker", "SynchronizationActor"} <= seen, "nothing was seen of the training"
    assert not {"_StatsActor", "_AutoscalingCoordinatorActor", "log_monitor.py"} & seen
    assert len(ray.data.range(4).map(lambda row: row).take_all()) == 4


def _actors() -> set[str]:
    """Names of the actors that this machine's Ray runs, without their methods."""
    return {
        name.removeprefix("ray::").partition(".")[0].split()[0]
        for child in psutil.Process().children(recursive=True)
        if (name := " ".join(child.cmdline())).startswith("ray::")
    }


def _commands() -> set[str]:
    return {Path(part).name for child in psutil.Process().children(recursive=True) for part in child.cmdline()}


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


def test_a_joined_cluster_says_itself_how_many_workers_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    check_workers(12, Run(workers=6, cpus=2, ray_address="auto"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as inside `ray job submit`
    check_workers(12, Run(workers=6, cpus=2))
    assert room_of(Run(workers=6, cpus=2)) is None  # on machines that this one cannot see


def test_every_training_has_a_place_of_its_own_for_checkpoints() -> None:
    folder = Path("/runs/demo/store/denoiser/0123abcd/_state")
    assert checkpoints_url(folder, Run()) is None
    assert checkpoints_url(folder, Run(checkpoints="s3://bucket/marks/")) == "s3://bucket/marks/denoiser-0123abcd"
