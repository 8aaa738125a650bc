"""One process of the training benchmarks: ``python -m tests.benchmarks.train_worker bare|memory JOB OUT``.

* ``bare``: the task of JOB in plain PyTorch, with neither engine nor clock nor checkpoints: what the others are
  measured against. The same samples, module, AdamW (fused), clipping and moving average.
* ``memory``: ``components.training.loop`` on one rank of a group (``RANK``, ``WORLD_SIZE``), without Ray and MLflow,
  and the bytes of its optimiser's state.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def bare(task: Any, plan: Any) -> dict[str, Any]:
    """Images a second of a plain loop from its second step on, as the others count them, and processor seconds."""
    import torch

    from components.runtime.precision import autocast
    from components.training.ema import Ema
    from components.training.objective import schedule
    from components.training.order import Order

    torch.manual_seed(plan.seed)
    device = torch.device("cpu")
    module = task.build().train()
    module.fit_to(device)
    weights = [p for p in module.parameters() if p.requires_grad]
    rate = plan.optimiser.adam_rate
    optimiser = torch.optim.AdamW(
        weights, lr=rate, betas=(0.9, 0.99), weight_decay=plan.optimiser.weight_decay, fused=True
    )
    ema = Ema([w.data for w in weights], plan.ema_decay)
    samples = Order(task.open(module, device), plan.batch_size, plan.seed)
    began = spent = 0.0
    for step in range(plan.steps):
        draws = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        batch = task.batch(samples.batch(step), slice(0, plan.batch_size), draws)
        with autocast("cpu", plan.bf16):
            loss = module(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, plan.optimiser.gradient_clip)
        for group in optimiser.param_groups:
            group["lr"] = rate * schedule(step, plan.steps, plan.warmup, plan.cooldown)
        optimiser.step()
        optimiser.zero_grad()
        ema.update([w.data for w in weights])
        if step == 0:
            began, spent = time.perf_counter(), time.process_time()
    seconds = time.perf_counter() - began
    images = (plan.steps - 1) * plan.batch_size
    return {"images_per_second": images / seconds, "processor_seconds": time.process_time() - spent}


class Weighed:
    """A task that weighs the optimiser's state once steps have been made; everything else is the task's."""

    def __init__(self, task: Any, after: int) -> None:
        self._task, self._left, self.found = task, after, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batch(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self.found = state_bytes()
        return self._task.batch(*arguments)


def state_bytes() -> int:
    """Bytes of the tensors in the state of every optimiser of this process; a storage is counted once."""
    import torch

    seen: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.optim.Optimizer):
            for values in list(dict(thing.state).values()):
                for value in values.values() if isinstance(values, dict) else ():
                    if isinstance(value, torch.Tensor) and value.ndim:
                        seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(seen.values())


def memory(task: Any, plan: Any) -> dict[str, Any]:
    """Bytes of the optimiser's state on this rank, and the number of weights."""
    import torch.distributed as dist

    from components.training.loop import train

    dist.init_process_group("gloo", init_method=f"file://{os.environ['GROUP_FILE']}",
                            rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))  # fmt: skip
    weights = sum(p.numel() for p in task.build().parameters() if p.requires_grad)
    weighed = Weighed(task, plan.steps)
    with tempfile.TemporaryDirectory() as folder:
        train(weighed, plan, Path(folder))
    return {"bytes": weighed.found, "weights": weights}


def main(kind: str, job: str, out: str) -> None:
    """Do it and write the figures as JSON."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    task, plan = pickle.loads(Path(job).read_bytes())  # our own file, written a moment ago
    Path(out).write_text(json.dumps({"bare": bare, "memory": memory}[kind](task, plan)))


if __name__ == "__main__":
    main(*sys.argv[1:])
