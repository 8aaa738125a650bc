"""How fast pictures are served, beside Ray Serve's own ways to serve the same checkpoint on the same cores."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.benchmarks.harness import Row, limit, paired
from tests.benchmarks.serve_setup import GUIDANCE, PROMPT, THREADS, Scale, arriving, flying, ours, rival, serving

FIGURES = (
    "requests/s, 16 in flight, 20 steps", "requests/s, 16 in flight, the example at its best",
    "requests/s, mixed 10-50 steps", "p95 latency, mixed 10-50 steps",
    "latency of a lone request", "p99 by p50 at 80 % load",
)  # fmt: skip
FLYING, STEPS = 16, 20
WAIT_S = 1.0  # that ``@serve.batch`` waits for more


def _twenty(_: int) -> int:
    return STEPS


def mixed_steps(number: int) -> int:
    """10 to 50 steps, alike for both sides."""
    return int(np.random.default_rng(number).integers(10, 51))


def throughput(scale: Scale) -> list[Row]:
    """16 requests in flight against the documented example, as it is and at its best."""
    from tests.benchmarks.serve_rivals import AsDocumented, OneByOne, deploy

    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name, serving(Path(name)) as world:
        sides = {"ours": ours(world.url)}
        for model, label in ((AsDocumented, "documented"), (OneByOne, "one")):
            sides[label] = rival(deploy(model, label, world.url, str(world.folder), THREADS))
        found: dict[str, list[float]] = {side: [] for side in sides}
        for run in range(scale.runs):
            for side, ask in sides.items():
                rate = flying(ask, FLYING, _twenty, scale.seconds, scale.seconds / 3)
                found[side].append(max(rate, 1e-3))
            last = {side: round(rates[-1], 2) for side, rates in found.items()}
            print(f"  run {run + 1} of {scale.runs}: requests/s {last}", flush=True)
    note = (
        f"one picture of 32 px a request, guidance {GUIDANCE:g}; {THREADS} threads on each side; the rival is Ray's "
        "example with steps and guidance taken from the request"
    )
    name = "Ray Serve's Stable Diffusion example"
    plain = f"{note}."
    best = f"{note}; all calls on one thread, as Serve's pool makes PyTorch's threads wait; requests wait before it."
    return [
        paired(FIGURES[0], "requests/s", found["ours"], name, found["documented"], 5.0, note=plain),
        paired(FIGURES[1], "requests/s", found["ours"], f"{name}, on one thread", found["one"], 5.0, note=best),
    ]


def mixed(scale: Scale) -> list[Row]:
    """Poisson arrivals of 10 to 50 steps near saturation, against ``@serve.batch`` of whole requests."""
    from tests.benchmarks.serve_rivals import MOST, Batched, deploy

    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name, serving(Path(name), max_queue=512) as world:
        other = rival(deploy(Batched, "batched", world.url, str(world.folder), THREADS, WAIT_S))
        load = flying(ours(world.url), 24, mixed_steps, scale.seconds, scale.seconds / 2)
        found: dict[str, list[Any]] = {"ours": [], "rival": []}
        for run in range(scale.runs):
            for side, ask in (("ours", ours(world.url)), ("rival", other)):
                arrived = arriving(ask, load, mixed_steps, 2 * scale.seconds, run, 2 * scale.seconds)
                found[side].append((arrived[1], arrived[0].quantile(0.95)))
            last = {side: tuple(round(x, 2) for x in runs[-1]) for side, runs in found.items()}
            print(f"  run {run + 1} of {scale.runs}: requests/s and p95 {last}", flush=True)
    rates = {side: [max(run[0], 1e-3) for run in runs] for side, runs in found.items()}
    late = {side: [run[1] for run in runs] for side, runs in found.items()}
    rival_name = "@serve.batch of whole requests"
    note = (
        f"{load:.1f} requests/s arrive by chance for {2 * scale.seconds:.0f} s on both sides: as many as ours answers "
        f"with 24 in flight. The rival draws up to {MOST} requests a call, all with the steps of the longest, of those "
        f"that arrive within {WAIT_S:g} s: its answers were most with that, of 0.02, 0.5, 1 and 2 s."
    )
    return [
        paired(FIGURES[2], "requests/s", rates["ours"], rival_name, rates["rival"], 1.5, note=note),
        paired(FIGURES[3], "s", late["ours"], rival_name, late["rival"], 1.0, "<=",
               "of the same requests; what is not answered that long after the last arrival counts as long as it "
               "had waited."),
    ]  # fmt: skip


def lone(scale: Scale) -> list[Row]:
    """One request at a time, against the pipeline in the process that calls it."""
    from components.runtime.precision import autocast

    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name, serving(Path(name)) as world:
        pipe = _bare(world.folder)
        body = {"prompt": PROMPT, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
        with httpx.Client(timeout=600, trust_env=False) as http:

            def served() -> Any:
                return http.post(f"{world.url}/v1/images/generations", json={**body, "seed": 1}).raise_for_status()

            def bare() -> Any:
                with autocast("cpu"):
                    return pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE).images[0]

            for call in (served, bare) * 2:
                call()
            mine, theirs = [], []
            for run in range(scale.runs):
                a, b = _alternating(served, bare, max(3, round(scale.seconds)))
                mine.append(a)
                theirs.append(b)
                print(f"  run {run + 1} of {scale.runs}: {1000 * a:.0f} against {1000 * b:.0f} ms", flush=True)
    note = f"{STEPS} steps, guidance {GUIDANCE:g}, {THREADS} threads each; medians of calls that take turns."
    seconds = ([1000 * s for s in mine], [1000 * s for s in theirs])
    name = "the bare diffusers pipeline in-process"
    return [paired(FIGURES[4], "ms", seconds[0], name, seconds[1], 1.15, "<=", note)]


def steady(scale: Scale) -> list[Row]:
    """Arrivals by chance at 80 % of what the server can answer."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name, serving(Path(name)) as world:
        ask = ours(world.url)
        most = flying(ask, 2 * FLYING, _twenty, scale.seconds, scale.seconds / 2)
        ratios, middles = [], []
        for run in range(scale.runs):
            answers, _ = arriving(ask, 0.8 * most, _twenty, 4 * scale.seconds, run, 60.0)
            middles.append(answers.quantile(0.5))
            ratios.append(answers.quantile(0.99) / middles[-1])
            print(f"  run {run + 1} of {scale.runs}: p50 {middles[-1]:.2f} s, p99 by it {ratios[-1]:.2f}", flush=True)
    note = (
        f"{0.8 * most:.1f} requests/s by chance, of {most:.1f} that are answered with {2 * FLYING} in flight; {STEPS} "
        f"steps; p50 {statistics.median(middles):.2f} s."
    )
    return [limit(FIGURES[5], "x", ratios, 2.5, "<=", note, "its own p50")]


def _bare(folder: Path) -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(THREADS)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _alternating(one: Callable[[], Any], other: Callable[[], Any], times: int) -> tuple[float, float]:
    """Median seconds of each."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for into, call in zip(taken, (one, other), strict=True):
            started = time.monotonic()
            call()
            into.append(time.monotonic() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])
