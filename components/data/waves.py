"""Tables of work on Ray Data, a bounded number of bytes at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from components.contracts.recipe import Run


def in_waves(tables: Iterable[pa.Table], work: Callable[[pa.Table], pa.Table], run: Run) -> Iterator[pa.Table]:
    """Apply ``work`` to every table in Ray Data tasks, one table a task, and yield the results as they come.

    A wave takes as many tables as fill half of the object store, and at least one for every CPU; the next begins
    when it is done. So what is in memory at once does not grow with the number of tables.

    Args:
        tables: made when their wave begins.
        work: a pure function, importable in a worker: a task whose worker dies is done again.
        run: circumstance.
    """
    from components.runtime.cluster import ray_session

    with ray_session(run):
        wave: list[pa.Table] = []
        size = 0
        for table in tables:
            wave.append(table)
            size += table.nbytes
            if size > run.object_store_mb * 500_000 and len(wave) >= run.cpus:
                yield from _wave(wave, work, run)
                wave, size = [], 0
        if wave:
            yield from _wave(wave, work, run)


def _wave(tables: list[pa.Table], work: Callable[[pa.Table], pa.Table], run: Run) -> Iterator[pa.Table]:
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and timings are not for users
    results = ray.data.from_arrow(tables).map_batches(
        work,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
        compute=TaskPoolStrategy(size=min(run.cpus, len(tables))),
    )
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
