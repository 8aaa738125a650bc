"""Memory of the optimiser's state on a worker under ZeRO, against what sharding promises.

Real groups of processes over gloo train the U-Net for a few steps by ``components.training.loop``; each rank counts
the bytes of the tensors in its optimiser's state. AdamW keeps two fp32 numbers a weight, so that ``8 * weights / N``
bytes are due on each of ``N`` ranks (Rajbhandari et al. 2020, "ZeRO", figure 1, the K term without the fp32 copy:
weights are in fp32 here).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.benchmarks.harness import Row
from tests.benchmarks.train_setup import Parts, cpu_session, finish, make_parts, start

FIGURES = ("optimizer state of a worker",)
STEPS = 6


def rows() -> list[Row]:
    """A row for each ZeRO stage and number of workers."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name, cpu_session():
        parts = make_parts(Path(name))
        return [_row(parts, stage, workers, Path(name)) for stage in (1, 2, 3) for workers in (2, 4)]


def _row(parts: Parts, stage: int, workers: int, root: Path) -> Row:
    ctx = parts.context(workers=workers, zero_stage=stage, steps=STEPS)
    ctx.recipe = ctx.recipe.model_copy(update={"run": ctx.recipe.run.model_copy(update={"cpus": workers})})
    job = parts.job(ctx, root / f"job-{stage}-{workers}.pickle")
    outs = [root / f"rank-{stage}-{workers}-{rank}.json" for rank in range(workers)]
    meeting = {"GROUP_FILE": str(root / f"group-{stage}-{workers}"), "WORLD_SIZE": str(workers)}
    finish([
        start("tests.benchmarks.train_worker", "memory", str(job), str(out),
              env={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, out in enumerate(outs)
    ])  # fmt: skip
    found = [json.loads(out.read_text()) for out in outs]
    largest, due = max(rank["bytes"] for rank in found), 8 * found[0]["weights"] / workers
    ratio = largest / due
    print(f"  ZeRO-{stage}, {workers} workers: {largest:,} bytes of {due:,.0f}", flush=True)
    return Row(
        f"optimizer state of a worker, ZeRO-{stage}, {workers} workers", "MB", largest / 1e6, "8 bytes a weight / N",
        due / 1e6, ratio, "0.9 to 1.1 x", 0.9 <= ratio <= 1.1, None, 1,
        f"{found[0]['weights']:,} weights in fp32, AdamW; the largest of the ranks",
    )  # fmt: skip
