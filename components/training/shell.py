"""A thin Ray Train shell around the loop: one process a worker, DeepSpeed over the group that Ray sets up.

A worker or node that is lost costs the time since the last checkpoint: Ray Train starts the workers again, as many
as there is room for, and they go on. ``folder`` must be seen by every worker: with workers on several nodes keep the
run's root on shared storage, or let ``run.checkpoints`` name a URL that all nodes reach.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.contracts.errors import AtelierError, TrainingError
from components.contracts.recipe import Run
from components.runtime.cluster import address_of, ray_session
from components.training.far import fetch
from components.training.following import Listener, following

_SUMMARY = "summary.json"
_OF_RAY_DATA = (  # name and namespace
    ("datasets_stats_actor", "_dataset_stats_actor"), ("AutoscalingCoordinator", "AutoscalingCoordinator"),
)  # fmt: skip


def run_training(task: Any, plan: Any, folder: Path, run: Run, listener: Listener | None = None) -> dict[str, Any]:
    """Train ``task`` by ``plan`` (see :func:`components.training.loop.train`) on ``run.workers`` workers.

    A training that was killed goes on from its last checkpoint in ``folder``; one that had ended returns at once.

    Returns:
        The loop's summary.

    Raises:
        TrainingError: the loop refused, or workers failed more often than ``run.max_failures``.
        RuntimeUnavailable: Ray cannot be started.
    """
    check_workers(plan.batch_size, run, getattr(task, "whole_batch", False))
    summary, url = folder / _SUMMARY, checkpoints_url(folder, run)
    if url:
        plan = replace(plan, checkpoints=url)
        fetch(url, folder)
    if not summary.exists():
        if run.launcher == "here":
            from components.training.here import train_here

            with following(task.name, plan, folder, listener):
                train_here(task, plan, folder)
        else:
            with ray_session(run), following(task.name, plan, folder, listener):
                if not address_of(run):
                    _end_idle_actors()
                _fit(task, plan, folder, run)
        if url:
            fetch(url, folder)
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


def checkpoints_url(folder: Path, run: Run) -> str | None:
    """Where the checkpoints of the training with that folder are kept, if elsewhere than in it."""
    return f"{run.checkpoints.rstrip('/')}/{'-'.join(folder.parts[-3:-1])}" if run.checkpoints else None


def check_workers(batch_size: int, run: Run, whole_batch: bool = False) -> None:
    """Refuse numbers of workers that cannot be had, or cannot share the batch.

    Raises:
        TrainingError: see above.
    """
    local = run.launcher == "ray" and not address_of(run)
    if local and run.gpus_per_worker == 0 and run.workers * run.threads_per_worker > run.cpus:
        raise TrainingError(
            f"{run.workers} workers of {run.threads_per_worker} threads do not fit on run.cpus={run.cpus}",
            expected="run.workers * run.threads_per_worker <= run.cpus",
            remedy="lower run.workers, or raise run.cpus",
        )
    if run.launcher == "here":
        return  # torchrun says how many there are; the loop checks
    fewest = run.min_workers or run.workers
    if fewest > run.workers:
        raise TrainingError(
            f"run.min_workers {fewest} is above run.workers {run.workers}",
            expected="run.min_workers <= run.workers",
            remedy="lower run.min_workers, or leave it out for a fixed number of workers",
        )
    parts = 1 if whole_batch else run.accumulate
    wrong = [n for n in range(fewest, run.workers + 1) if batch_size % (n * parts)]
    if wrong:
        needed = math.lcm(*(n * parts for n in range(fewest, run.workers + 1)))
        by = f" in {parts} parts each" if parts > 1 else ""
        raise TrainingError(
            f"A global batch of {batch_size} cannot be split among {' or '.join(map(str, wrong))} workers{by}",
            expected=f"a multiple of {needed}",
            remedy="change the section's batch_size, run.workers, run.min_workers or run.accumulate",
        )


def _fit(task: Any, plan: Any, folder: Path, run: Run) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.exceptions import TrainingFailedError

    from components.training.failures import Failures
    from components.training.processor import KEEP_FREED_MEMORY

    resources = {"CPU": float(run.threads_per_worker)}
    if run.gpus_per_worker:
        resources["GPU"] = run.gpus_per_worker

    # each is a process more at every start: no Ray Data set is fed to the workers, and what a local Ray holds ends
    # with the session
    idle = (DatasetsCallback,) if address_of(run) else (DatasetsCallback, PlacementGroupCleanerCallback)

    class Trainer(TorchTrainer):  # type: ignore[misc]
        """Ctrl-C stops this process as it stops any other stage: Ray's own handler ends it without a word."""

        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, idle)]

        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Python's handler in place; the workers end with the session."""

        def _initialize_and_run_controller(self, *, scaling_policy: Any, **kwargs: Any) -> Any:
            if not address_of(run) and not run.min_workers:
                from components.training.placing import OneMachine

                scaling_policy = OneMachine(self.scaling_config)
            return super()._initialize_and_run_controller(scaling_policy=scaling_policy, **kwargs)

    trainer = Trainer(
        _worker,
        train_loop_config={"task": task, "plan": plan, "folder": str(folder), "threads": run.threads_per_worker},
        scaling_config=ScalingConfig(
            num_workers=(run.min_workers, run.workers) if run.min_workers else run.workers,
            use_gpu=run.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if run.gpus_per_worker else "gloo"),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            worker_runtime_env={"env_vars": KEEP_FREED_MEMORY},
            failure_config=FailureConfig(max_failures=run.max_failures),
            callbacks=[Failures(folder, run.max_failures)],
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _explained(error, task.name) from error


def _end_idle_actors() -> None:
    """Those that Ray Data left in this machine's Ray: each is a process that wakes a hundred times a second.

    Ray Data makes them anew where it finds none.
    """
    import ray

    for name in _OF_RAY_DATA:
        with contextlib.suppress(ValueError):  # there is none
            ray.kill(ray.get_actor(*name))


def _worker(config: dict[str, Any]) -> None:
    """One rank. Imports happen here, in the worker."""
    import torch

    from components.training.loop import train

    torch.set_num_threads(config["threads"])
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)  # on another node than the one that asks
    train(config["task"], config["plan"], folder)


def _explained(error: Exception, name: str) -> AtelierError:
    """What a worker raised, or what became of the workers, as one error for the user."""
    from components.training.failures import refusal_in

    failures = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    for failure in failures:
        if refusal := refusal_in(failure):
            return refusal
    lines = [line for line in str(failures[0]).strip().splitlines() if line.strip()]
    return TrainingError(
        f"Training the {name} failed: {lines[-1].strip() if lines else type(failures[0]).__name__}",
        expected="every worker to reach the last step",
        remedy="run the same command again, it goes on from the last checkpoint; if a worker was killed for "
        "memory, lower the section's batch_size, or raise run.accumulate or run.zero_stage",
    )
