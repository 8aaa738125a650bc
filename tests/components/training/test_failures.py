"""A node lost in the middle of an elastic training, on a Ray cluster of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.contracts.recipe import Run
from components.runtime.cluster import ONE_MACHINE, apply_quiet_environment
from components.training import checkpoint
from components.training.shell import run_training
from tests.components.training.tiny import Tiny
from tests.components.training.watching import OFTEN, require_as_one_process, step_of, when


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

        watcher = when(lambda: step_of(folder) >= 4, lose)
        summary = run_training(Tiny(pause_s=0.3), OFTEN, folder, run)
        watcher.join()
        assert worlds == [2], "no node was lost"
        assert not second.any_processes_alive()
        mark, _ = checkpoint.latest(folder) or pytest.fail("no checkpoint")
        assert (mark.step, mark.world) == (24, 1)
    finally:
        ray.shutdown()
        cluster.shutdown()
    require_as_one_process(folder, summary, calm)
