"""Work spread over Ray actors: pieces are cut before anybody knows how many actors there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from components.contracts.errors import AtelierError, RuntimeUnavailable
from components.contracts.recipe import Run
from components.runtime.cluster import ray_session

Piece = TypeVar("Piece")


def spread(
    run: Run,
    worker: type,
    arguments: Sequence[Any],
    pieces: Iterable[Piece],
    count: int,
    alone: Piece | None = None,
    shared: Any = None,
) -> Iterator[tuple[Piece, Any]]:
    """``worker(*arguments).work(piece)`` for every piece, on ``run.workers`` actors; results as they are done.

    Args:
        arguments: of the worker's constructor.
        pieces: asked for one by one: no more than two for each actor are in memory.
        count: of the pieces. No more actors are started than that, or than the cluster has CPUs.
        alone: a last piece, done when no other actor has anything to do.
        shared: something large that is stored once for all actors; they get ``[reference]`` as their first argument.

    Raises:
        RuntimeUnavailable: Ray cannot be started, or an actor died.
        AtelierError: what a worker raised.
    """
    with ray_session(run):
        import ray
        from ray.exceptions import RayError, RayTaskError

        cpus = int(ray.cluster_resources().get("CPU", 1))
        remote = ray.remote(num_cpus=1, num_gpus=run.gpus_per_worker, max_restarts=2, max_task_retries=2)(worker)
        most = max(1, min(run.workers, count, cpus))
        # in a list: Ray warns of arguments that it would have to find again when it starts an actor anew
        stored = [] if shared is None else [[ray.put(shared)]]
        workers = [remote.remote(*stored, *arguments) for _ in range(most)]
        waiting = iter(pieces)
        running: dict[Any, tuple[Any, Piece]] = {}
        try:
            for each in workers * 2:  # two each: the next one is there when the first is done
                for piece in itertools.islice(waiting, 1):
                    running[each.work.remote(piece)] = (each, piece)
            while running:
                ready, _ = ray.wait(list(running), num_returns=1)
                each, piece = running.pop(ready[0])
                result = ray.get(ready[0])
                for following in itertools.islice(waiting, 1):
                    running[each.work.remote(following)] = (each, following)
                yield piece, result
            if alone is not None:
                yield alone, ray.get(workers[0].work.remote(alone))
            for each in workers:  # give their CPUs back at once; after an error they go when they are idle
                ray.kill(each)
        except RayTaskError as error:
            if isinstance(error.cause, AtelierError):
                raise error.cause from None
            raise
        except RayError as error:
            raise RuntimeUnavailable(
                f"A worker of the assessment died: {str(error).splitlines()[0]}",
                expected=f"{most} workers with one CPU each and memory for the model",
                remedy="lower run.workers or assess.batch_size, then run the same command again: it goes on",
            ) from error
