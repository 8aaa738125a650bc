"""What a server does with more than it can do, and what many requests leave behind in its memory."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from tests.benchmarks.harness import Row, limit
from tests.benchmarks.serve_setup import Answers, Scale, arriving, client, flying, one, ours, serving

FIGURES = (
    "p99 of accepted requests at 3x capacity", "p99 of refusals at 3x capacity", "memory growth at 3x capacity",
    "memory growth after requests with random cancels",
)  # fmt: skip
STEPS, QUEUE = 20, 16


def overload(scale: Scale) -> list[Row]:
    """Three times as many requests as can be answered, after a while of 80 %."""
    found: dict[str, list[float]] = {"p99": [], "refusal": [], "memory": []}
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name, serving(Path(name), max_queue=QUEUE) as world:
        ask = ours(world.url)
        most = flying(ask, 24, lambda _: STEPS, scale.seconds, scale.seconds / 2)
        calm, _ = arriving(ask, 0.8 * most, lambda _: STEPS, 3 * scale.seconds, 0, 60.0)
        normal, before = calm.quantile(0.99), resident()
        flood, answered = arriving(ask, 3 * most, lambda _: STEPS, scale.overload_s, 1, 60.0)
        found["p99"].append(flood.quantile(0.99) / normal)
        found["refusal"].append(float(np.quantile(flood.refused, 0.99)) if flood.refused else 0.0)
        found["memory"].append(100 * (resident() / before - 1))
        total = len(flood.seconds) + len(flood.refused) + len(flood.open)
    note = (
        f"{3 * most:.1f} requests/s by chance for {scale.overload_s:.0f} s, max_queue={QUEUE}: {total} requests, "
        f"{len(flood.seconds)} accepted and answered ({answered:.1f}/s; {most:.1f}/s are possible), "
        f"{len(flood.refused)} refused, {len(flood.open)} left. Normal p99, at 80 % load: {normal:.2f} s."
    )
    return [
        limit(FIGURES[0], "x", found["p99"], 3.0, "<=", note, "its p99 at 80 % load"),
        limit(FIGURES[1], "s", found["refusal"], 0.5, "<=", "429 or 503, from sending to the whole answer."),
        limit(FIGURES[2], "%", found["memory"], 2.0, "<=", "resident memory of the replica."),
    ]


def memory(scale: Scale) -> list[Row]:
    """Thousands of requests of few steps, a third of which are given up at a moment that chance picks."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name, serving(Path(name), max_queue=512) as world:
        asyncio.run(_giving_up(world.url, max(40, scale.requests // 4), 0))
        before = resident()
        given_up = asyncio.run(_giving_up(world.url, scale.requests, 1))
        after = resident()
    note = (
        f"{scale.requests} requests of 4 to 12 steps, 24 at once, {given_up} of them cut off by the client; resident "
        f"memory of the replica from {before / 2**20:.0f} to {after / 2**20:.0f} MB, after a quarter as many before."
    )
    return [limit(FIGURES[3], "%", [100 * (after / before - 1)], 2.0, "<=", note)]


async def _giving_up(url: str, requests: int, seed: int) -> int:
    """Ask, and give up a third. Returns how many were."""
    draws, ask, answers = np.random.default_rng(seed), ours(url), Answers()
    todo, given_up = iter(range(requests)), 0
    async with client() as http:

        async def ask_on() -> None:
            nonlocal given_up
            for i in todo:
                asked = one(http, ask, i, int(draws.integers(4, 13)), answers)
                if draws.random() > 1 / 3:
                    await asked
                    continue
                try:
                    await asyncio.wait_for(asked, float(draws.uniform(0.0, 1.0)))
                except TimeoutError:
                    given_up += 1

        await asyncio.gather(*(ask_on() for _ in range(24)))
    answers.require_sound()
    return given_up


def resident() -> int:
    """Bytes of the replica's memory, when it has come to rest.

    Raises:
        RuntimeError: there is not exactly one replica below this process.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica:atelier:images" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has ended meanwhile
            continue
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} replicas were found, expected one")
    samples = []
    for _ in range(8):
        time.sleep(0.25)
        samples.append(found[0].memory_info().rss)
    return int(statistics.median(samples))
