"""Independent pieces of work on Ray Data: bounded, restartable, and with errors that users can read."""

from __future__ import annotations

import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from components.contracts.errors import AtelierError
from components.contracts.recipe import Run


def run_pieces(
    pieces: Iterable[dict[str, Any]],
    work: Callable[[dict[str, Any]], dict[str, Any]],
    run: Run,
    at_once: int,
    poll: Callable[[], None] | None = None,
    as_worker: bool = False,
) -> Iterator[dict[str, Any]]:
    """Call ``work`` on every piece in Ray Data tasks, one piece a task, and yield the results as they come.

    Args:
        pieces: descriptions of the work: plain JSON values; asked for one at a time.
        work: runs in a worker process; must be importable there, and safe to run again when a worker dies.
        run: circumstance; a task takes ``min(1, run.cpus / at_once)`` CPUs.
        at_once: tasks in flight.
        as_worker: a task takes the CPUs and GPUs of a training worker instead.
        poll: called about twice a second in a thread of this process while work goes on, to show progress.

    Raises:
        AtelierError: as raised in a worker.
    """
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    def batch(table: pa.Table) -> pa.Table:
        # errors of this project travel as values: Ray hands on only the text of what was raised
        results: list[str | None] = []
        errors: list[bytes | None] = []
        for text in table["json"].to_pylist():
            try:
                results.append(json.dumps(work(json.loads(text))))
                errors.append(None)
            except AtelierError as error:
                results.append(None)
                errors.append(pickle.dumps(error))
        return pa.table({"json": pa.array(results, pa.string()), "error": pa.array(errors, pa.binary())})

    tables = [pa.table({"json": [json.dumps(piece)]}) for piece in pieces]  # one block a piece
    if not tables:
        return
    at_once = min(at_once, len(tables))
    taken: dict[str, Any] = {"num_cpus": min(1.0, run.cpus / at_once)}
    if as_worker:
        taken = {"num_cpus": run.threads_per_worker, "num_gpus": run.gpus_per_worker or None}
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and timings are not for users
    results = ray.data.from_arrow(tables).map_batches(
        batch,
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(size=at_once),
        **taken,
    )
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended, poll), daemon=True) if poll else None
    if watcher:
        watcher.start()
    try:
        # none is fetched ahead: a result would be held back until there is another
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                if row["error"] is not None:
                    raise pickle.loads(row["error"])  # made by our own worker
                yield json.loads(row["json"])
    finally:
        ended.set()
        if watcher:
            watcher.join()


def _watch(ended: threading.Event, poll: Callable[[], None]) -> None:
    while not ended.wait(0.5):
        poll()
