"""A thin Ray Train shell around the loop: one process a worker, DeepSpeed over the group that Ray sets up.

``folder`` must be seen by every worker: with workers on several nodes keep the run's root on shared storage.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.contracts.errors import AtelierError, TrainingError
from components.contracts.recipe import Run
from components.runtime.cluster import ray_session
from components.runtime.progress import Progress

_CURVE, _SUMMARY = "curve.jsonl", "summary.json"


def run_training(task: Any, plan: Any, folder: Path, run: Run) -> dict[str, Any]:
    """Train ``task`` by ``plan`` (see :func:`components.training.loop.train`) on ``run.workers`` workers.

    A training that was killed goes on from its last checkpoint in ``folder``; one that had ended returns at once.

    Returns:
        The loop's summary.

    Raises:
        TrainingError: the loop refused, or a worker died.
        RuntimeUnavailable: Ray cannot be started.
    """
    if run.gpus_per_worker == 0 and run.workers * run.threads_per_worker > run.cpus and not run.ray_address:
        raise TrainingError(
            f"{run.workers} workers of {run.threads_per_worker} threads do not fit on run.cpus={run.cpus}",
            expected="run.workers * run.threads_per_worker <= run.cpus",
            remedy="lower run.workers, or raise run.cpus",
        )
    summary = folder / _SUMMARY
    if not summary.exists():
        with ray_session(run), _progress(task.name, plan, folder):
            _fit(task, plan, folder, run)
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


def _fit(task: Any, plan: Any, folder: Path, run: Run) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    resources = {"CPU": float(run.threads_per_worker)}
    if run.gpus_per_worker:
        resources["GPU"] = run.gpus_per_worker
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"task": task, "plan": plan, "folder": str(folder), "threads": run.threads_per_worker},
        scaling_config=ScalingConfig(
            num_workers=run.workers, use_gpu=run.gpus_per_worker > 0, resources_per_worker=resources
        ),
        torch_config=TorchConfig(backend="nccl" if run.gpus_per_worker else "gloo"),
        # continuing is done by the same command, from our own checkpoints, and not behind the user's back
        run_config=RunConfig(name="ray", storage_path=str(folder), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _explained(error, task.name) from error


def _worker(config: dict[str, Any]) -> None:
    """One rank. Imports happen here, in the worker."""
    import torch

    from components.training.loop import train

    torch.set_num_threads(config["threads"])
    train(config["task"], config["plan"], Path(config["folder"]))


def _explained(error: Exception, name: str) -> AtelierError:
    """What a worker raised, or what became of the workers, as one error for the user."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    for failure in failures:
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, AtelierError):
                return seen
            seen = getattr(seen, "cause", None) or getattr(seen, "_base_exc", None) or seen.__cause__
    lines = [line for line in str(failures[0]).strip().splitlines() if line.strip()]
    return TrainingError(
        f"Training the {name} failed: {lines[-1].strip() if lines else type(failures[0]).__name__}",
        expected="every worker to reach the last step",
        remedy="run the same command again, it goes on from the last checkpoint; if a worker was killed for "
        "memory, lower the section's batch_size",
    )


@contextlib.contextmanager
def _progress(name: str, plan: Any, folder: Path) -> Iterator[None]:
    """Show the curve that rank 0 writes while the block runs."""
    total = plan.steps * plan.batch_size
    bar = Progress(f"train {name}", total, "img", initial=int(_last(folder / _CURVE).get("images", 0)))
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            show()

    def show() -> str:
        point = _last(folder / _CURVE)
        note = f"loss {point['loss']:.4f}" if point else "starting workers"
        bar.update(int(point.get("images", 0)), note)
        return note

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        bar.close(show())


def _last(path: Path) -> dict[str, Any]:
    """The last whole point of the curve, empty when there is none."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError):
                point = json.loads(line)
                if isinstance(point, dict) and "loss" in point:
                    return point
    return {}
