"""Memory that a training process keeps, and threads beside the one that trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch

from components.training.prefetch import Batches
from components.training.processor import KEEP_FREED_MEMORY

FAULTS = """
import json, resource, sys
if sys.argv[1] == "asked":
    from components.training.processor import keep_freed_memory
    keep_freed_memory()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    held = [torch.ones(1_000_000) for _ in range(16)]  # as activations are, until the backward pass
    return len(held)
step()
before = faults()
for _ in range(10):
    step()
print(json.dumps(faults() - before))
"""


def faults_of(way: str) -> int:
    """Pages that were made anew in ten steps, by a process that keeps its memory in this way."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env |= KEEP_FREED_MEMORY if way == "told" else {}
    said = subprocess.run([sys.executable, "-c", FAULTS, way], env=env, capture_output=True, text=True, check=True)
    return int(json.loads(said.stdout))


def test_what_is_freed_is_kept_for_the_next_step() -> None:
    """By a call and by the environment alike; 64 MB are 16,000 pages, which a plain process gets anew in each."""
    plain, asked, told = map(faults_of, ("plain", "asked", "told"))
    assert plain > 10_000
    assert asked < plain / 2 and told < plain / 2  # some are taken away and made anew by the system itself


def test_batches_are_made_on_one_thread_while_the_training_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Batches(lambda step: {"threads": torch.tensor(torch.get_num_threads())}, 0, 1) as batches:
            assert int(batches.take(0)["threads"]) == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


UNUSED = """
import torch
from components.training.prefetch import Batches
with Batches(lambda step: {"x": torch.zeros(1)}, 0, 1) as batches:
    batches.take(0)
print(torch.get_num_threads())
"""


def test_threads_are_kept_also_by_a_process_that_has_not_computed_yet() -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    said = subprocess.run([sys.executable, "-c", UNUSED], env=env, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["2"]
