"""A small client that asks many prompts at once and counts what came back; for the demo and load tests."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Report:
    """What :func:`ask` saw. ``seconds`` holds the latency of each request served, in order of arrival."""

    ok: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)  # "status code" or the kind of connection error
    versions: Counter[str] = field(default_factory=Counter)  # requests served, by model version

    def quantile(self, q: float) -> float:
        """Latency in seconds at ``q`` in 0..1; NaN when nothing was served."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


def ask(
    base_url: str,
    key: str | None,
    prompts: Sequence[str],
    concurrency: int = 4,
    *,
    until: threading.Event | None = None,
    pause_s: float = 0.0,
    timeout_s: float = 300.0,
    **options: Any,
) -> Report:
    """Ask for one picture a prompt, ``concurrency`` at a time; blocks until all are answered.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``.
        until: when given, the prompts are asked round and round until it is set.
        pause_s: how long each of the ``concurrency`` askers rests after an answer.
        options: further fields of the request, such as ``num_inference_steps``.
    """
    return asyncio.run(_ask(base_url, key, prompts, concurrency, until, pause_s, timeout_s, options))


async def _ask(
    base_url: str,
    key: str | None,
    prompts: Sequence[str],
    concurrency: int,
    until: threading.Event | None,
    pause_s: float,
    timeout_s: float,
    options: dict[str, Any],
) -> Report:
    report = Report()
    waiting = itertools.cycle(prompts) if until else iter(prompts)

    async def worker(client: httpx.AsyncClient) -> None:
        for prompt in waiting:
            if until and until.is_set():
                return
            started = time.monotonic()
            try:
                answer = await client.post("/v1/images/generations", json={"prompt": prompt, **options})
            except httpx.HTTPError as error:
                report.failed += 1
                report.errors[type(error).__name__] += 1
                await asyncio.sleep(0.1)  # a server that is gone is not asked in a hot loop
                continue
            if answer.status_code == 200:
                report.ok += 1
                report.seconds.append(time.monotonic() - started)
                report.versions[answer.json()["model_version"]] += 1
            else:
                report.failed += 1
                report.errors[f"{answer.status_code} {_code(answer)}"] += 1
            await asyncio.sleep(pause_s)

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # a client of this machine's own server: proxies of the environment have no part in it
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=timeout_s, trust_env=False) as client:
        await asyncio.gather(*(worker(client) for _ in range(concurrency)))
    return report


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
