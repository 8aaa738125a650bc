"""When orders are begun and done, as far as it can be told from the queue, their steps and the pace."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.profiling import Profile
from serving.tickets import Job, LaneKey


@dataclass
class Lane:
    """Pictures that are drawn together, as the prediction sees them."""

    rows: int  # at most
    pictures: int  # at most
    seconds: float = 0.0  # from one step to the next
    running: list[tuple[float, int]] = field(default_factory=list)  # heap of ends and rows
    used: int = 0  # rows
    free_at: float = 0.0

    def begin(self, job: Job, at: float, steps: int) -> float:
        """When a picture that is begun ``at`` that time and needs so many steps ends."""
        end = at + steps * self.seconds
        heapq.heappush(self.running, (end, job.rows))
        self.used += job.rows
        return end

    def room(self, job: Job, now: float) -> float:
        """When there is room for a picture of ``job``, after those that ended by then have left."""
        self.free_at = max(self.free_at, now)
        while self.running and (len(self.running) >= self.pictures or self.used + job.rows > self.rows):
            end, rows = heapq.heappop(self.running)
            self.used -= rows
            self.free_at = max(self.free_at, end)
        return self.free_at


def predict(
    waiting: list[Job], running: list[tuple[Job, int]], profiles: dict[LaneKey, Profile], most: int, pace: float,
    now: float,
) -> float:  # fmt: skip
    """Write into every order when it ``starts`` and ``ends`` and how many go ``ahead`` of it.

    Every picture that ends makes room for the next one in its lane; lanes take turns, so all steps take equally long.

    Args:
        waiting: the order of every picture that waits, in their turns. running: pictures being drawn, as their order
            and the steps that are left. profiles: of every lane. most: pictures drawn together at most.
        pace: seconds from step to step by those of the profiles.

    Returns:
        Seconds until the last picture of those that wait is begun.
    """
    lanes = _lanes([*waiting, *(job for job, _ in running)], profiles, most, pace)
    ends: dict[Job, float] = {}
    for job, left in running:
        ends[job] = max(ends.get(job, 0.0), lanes[job.lane].begin(job, now, left))
        job.ahead = 0
    latest, seen = now, dict[Job, None]()
    for job in waiting:
        lane = lanes[job.lane]
        start = lane.room(job, now)
        if job not in seen and not job.begun:
            job.ahead, job.starts = len(seen), start
        seen[job] = None
        ends[job] = max(ends.get(job, 0.0), lane.begin(job, start, job.steps))
        latest = max(latest, start)
    for job, end in ends.items():
        job.ends = end
    return latest - now


def _lanes(pictures: Iterable[Job], profiles: dict[LaneKey, Profile], most: int, pace: float) -> dict[LaneKey, Lane]:
    """Every lane, with the seconds of a turn in which each of them takes a step as full as it gets."""
    sizes, rows = {}, dict[LaneKey, int]()
    for job in pictures:
        sizes[job.lane] = job.size
        rows[job.lane] = rows.get(job.lane, 0) + job.rows
    lanes = {lane: Lane(profiles[lane].limit(size), most) for lane, size in sizes.items()}
    turn = pace * sum(profiles[lane].seconds(size, min(rows[lane], lanes[lane].rows)) for lane, size in sizes.items())
    for each in lanes.values():
        each.seconds = turn
    return lanes
