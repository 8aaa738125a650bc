"""Who is next: the orders that wait, taken picture by picture in turns of their owners."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from serving.tickets import Job


class FairQueue:
    """Start-time fair queueing (Goyal, Vin and Cheng 1996, sec. 2) of pictures by the work they cost.

    Owners who have orders waiting get the same work done in the same time, however many orders each has; whoever was
    away is owed nothing for it. Orders of one owner are begun as they came in. Not safe for several threads.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, list[Job]] = {}  # by owner, none empty
        self._due: dict[str, float] = {}  # virtual time of an owner's next picture, where it lies ahead of the clock
        self._clock = 0.0

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def __iter__(self) -> Iterator[Job]:
        return (job for jobs in self._jobs.values() for job in jobs)

    def put(self, job: Job) -> None:
        """Let ``job`` wait; its owner's earlier orders go first."""
        self._jobs.setdefault(job.owner, []).append(job)

    def drop(self, gone: Callable[[Job], bool]) -> list[Job]:
        """Take out, and return, the orders for which ``gone`` holds."""
        dropped = [job for job in self if gone(job)]
        for job in dropped:
            self._remove(job)
        return dropped

    def take(self, fits: Callable[[Job], bool]) -> tuple[Job, int] | None:
        """The next picture among orders for which ``fits`` holds, as its order and its place in it."""
        first: tuple[float, float] | None = None
        chosen: Job | None = None
        for owner, jobs in self._jobs.items():
            if (job := next(filter(fits, jobs), None)) is not None:
                place = (self._start(owner), job.submitted)
                if first is None or place < first:
                    first, chosen = place, job
        if first is None or chosen is None:
            return None
        self._clock = max(self._clock, first[0])
        self._due[chosen.owner] = first[0] + chosen.work
        self._due = {owner: due for owner, due in self._due.items() if due > self._clock}
        chosen.begun += 1
        if chosen.begun == chosen.count:
            self._remove(chosen)
        return chosen, chosen.begun - 1

    def order(self) -> Iterator[Job]:
        """The order of every picture that waits, in the turns in which they will be taken where all of them fit."""
        pictures = {owner: (job for job in jobs for _ in range(job.count - job.begun))
                    for owner, jobs in self._jobs.items()}  # fmt: skip
        turns: list[tuple[float, float, int, str, Job]] = []
        for i, (owner, left) in enumerate(pictures.items()):
            job = next(left)
            turns.append((self._start(owner), job.submitted, i, owner, job))
        heapq.heapify(turns)
        while turns:
            start, _, i, owner, job = heapq.heappop(turns)
            yield job
            if (following := next(pictures[owner], None)) is not None:
                heapq.heappush(turns, (start + job.work, following.submitted, i, owner, following))

    def _start(self, owner: str) -> float:
        return max(self._clock, self._due.get(owner, 0.0))

    def _remove(self, job: Job) -> None:
        jobs = self._jobs[job.owner]
        jobs.remove(job)
        if not jobs:
            del self._jobs[job.owner]
