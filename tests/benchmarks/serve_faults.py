"""Failed requests while everything happens to a server of two replicas that can happen to it: no client may notice.

Each thing is done while clients ask without a pause, and it is asserted that it was done: that the version changed,
that the new one was refused, that the process was killed, that every replica was replaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from components.contracts.recipe import Recipe
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome
from tests.benchmarks.harness import Row, limit

FIGURES = ("failed requests during", "begun requests that a drain")
STEPS = 2
CONCURRENCY = 16
ALL = ("promote", "rollback", "crash at load", "kill", "replace every replica")
_PATIENCE_S = 240.0


@dataclass
class Faults:
    """What the clients saw, and what was done to the server meanwhile, with the seconds it took."""

    ok: int
    failed: int
    errors: dict[str, int]
    p50: float
    p99: float
    longest: float
    done: dict[str, float] = field(default_factory=dict)
    drained: tuple[int, int] = (0, 0)  # requests begun before the stop, and how many of them were answered


def rows(requests: int = 10_000) -> list[Row]:
    """The rows of ``make bench-serve``."""
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        found = run_faults(Path(root), requests)
    done = ", ".join(f"{what} ({seconds:.0f} s)" for what, seconds in found.done.items())
    note = (
        f"{found.ok + found.failed} requests of {STEPS} steps, {CONCURRENCY} in flight, two replicas, no retry by the "
        f"client; p50 {found.p50:.2f} s, p99 {found.p99:.2f} s, longest {found.longest:.1f} s; done: {done}"
        + (f"; errors: {found.errors}" if found.errors else "")
    )
    begun, answered = found.drained
    return [
        limit(
            "failed requests during promote, rollback, crash at load, SIGKILL of a replica, replacing of every replica",
            "requests", [float(found.failed)], 0.0, "<=", note, "KubeRay's upgrade test",
        ),
        limit(
            "begun requests that a drain left unanswered", "requests", [float(begun - answered)], 0.0, "<=",
            f"{begun} requests under way when the server was told to stop", "stated limit",
        ),
    ]  # fmt: skip


def run_faults(root: Path, requests: int, faults: Sequence[str] = ALL) -> Faults:
    """Do ``faults`` to a server under load, go on until ``requests`` were answered, then stop it under load.

    Raises:
        AssertionError: something was not done.
    """
    from serving import app
    from serving.client import ask

    recipe = Recipe.model_validate(
        {
            "name": "faults",
            "serve": {"requests_per_minute": 0, "pictures_per_day": 0, "probation_requests": 0},
            "run": {"root": str(root), "port": 0, "replicas": 2},
        }
    )
    with Context.of(recipe) as ctx:
        house = House(ctx)
        house.release(house.model(1))
        server = app.start(ctx)
        try:
            assert server.key is not None
            wait(lambda: len(_serving(server)) == 2, "two replicas")
            stop = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                prompts = [f"prompt {i}" for i in range(50)]
                load = pool.submit(
                    ask, server.url, server.key, prompts, CONCURRENCY, until=stop, num_inference_steps=STEPS
                )
                try:
                    done = {}
                    for fault in faults:
                        started = time.monotonic()
                        getattr(house, fault.replace(" ", "_"))(server)
                        done[fault] = time.monotonic() - started
                        print(f"  faults: {fault} done in {done[fault]:.1f} s", file=sys.stderr, flush=True)
                    wait(lambda: load.done() or house.answered(server) >= requests, f"{requests} requests", 3600)
                finally:
                    stop.set()
                    report = load.result(_PATIENCE_S)
            drained = drain(server, ctx.home)
        finally:
            server.stop()
    return Faults(
        report.ok, report.failed, dict(report.errors), report.quantile(0.5), report.quantile(0.99),
        max(report.seconds), done, drained,
    )  # fmt: skip


def drain(server: Any, home: Path, requests: int = 12) -> tuple[int, int]:
    """Stop the server while ``requests`` are under way: how many were, and how many were answered."""
    ask = {"prompt": "a long one", "num_inference_steps": 50, "n": 8}
    headers = {"Authorization": f"Bearer {server.key}"}
    options: dict[str, Any] = {"base_url": server.url, "headers": headers, "timeout": 120, "trust_env": False}

    def one(_: int) -> int:
        with httpx.Client(**options) as client:
            return client.post("/v1/images/generations", json=ask).status_code

    before = _running(home)  # of the replica that was killed
    with ThreadPoolExecutor(requests) as pool:
        asked = [pool.submit(one, i) for i in range(requests)]
        wait(lambda: len(_running(home) - before) == requests, f"{requests} requests under way", 30)
        server.stop()
        statuses = [each.result(120) for each in asked]
    with contextlib.suppress(httpx.TransportError):
        raise AssertionError(f"it answers after the stop: {httpx.get(f'{server.url}/healthz', trust_env=False)}")
    return requests, sum(status == 200 for status in statuses)


def _running(home: Path) -> set[str]:
    """The requests that replicas have taken and not answered yet, see serving.running."""
    return {path.name for path in (home / "requests").iterdir()}


def sample(exposition: str, name: str) -> float:
    """Sum of the samples called ``name``, over their labels."""
    lines = [line for line in exposition.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def wait(true: Callable[[], object], what: str, seconds: float = _PATIENCE_S) -> None:
    """Until ``true`` holds.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.1)


class House:
    """Models, their releases, and what is done to the server."""

    def __init__(self, ctx: Context) -> None:
        from tests.serving.conftest import Gate

        self.ctx = ctx
        self.gate = Gate(ctx.registry_uri, ctx.home, ctx.recipe.name, ctx.recipe.release)
        self._counts: dict[str, float] = {}

    def model(self, seed: int, damaged: bool = False) -> Artifact:
        """A tiny model; ``damaged``: with weights that no library reads, under checksums that agree."""
        from tests.serving.conftest import save_tiny_model

        draft = self.ctx.store.draft("model", {}, {"seed": seed})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about a scheduler's default
            save_tiny_model(draft.dir, seed)
        if damaged:
            for path in draft.dir.rglob("*.safetensors"):
                path.write_bytes(b"\xff" * 64)
        return draft.commit(Outcome())

    def release(self, artifact: Artifact) -> int:
        """Register with the verdict pass, and promote."""
        made = self.gate.register(artifact, promoted="true")
        self.gate.tracker.tag_version(made.name, made.version, {"verdict": "pass"})
        self.gate.promote(made.version)
        return int(made.version)

    def answered(self, server: Any) -> int:
        """Requests answered with 200, by all replicas that ever told."""
        for sign in server.replicas():
            self._counts[sign.replica] = sample(sign.metrics, "atelier_request_duration_seconds_count")
        return int(sum(self._counts.values()))

    def promote(self, server: Any) -> None:
        """A new champion, served by all replicas."""
        server.wait_for(self.release(self.model(2)), _PATIENCE_S)

    def rollback(self, server: Any) -> None:
        """Back to the champion before it, as ``atelier release --rollback`` does it."""
        from components.evaluation import release as releasing

        back = releasing.rollback(self.ctx, "a fault of the benchmark")
        server.wait_for(back.version, _PATIENCE_S)

    def crash_at_load(self, server: Any) -> None:
        """A champion that every replica fails to load; taken back then."""
        before = server.status()["served"]
        broken = self.release(self.model(3, damaged=True))
        wait(lambda: all(s.state["refused"] == str(broken) for s in server.replicas()), "all replicas refuse it")
        assert all(sign.state["served"] == before for sign in server.replicas())
        self.gate.promote(int(before))
        wait(lambda: not any(s.state["refused"] for s in server.replicas()), "all replicas are well again")

    def kill(self, server: Any) -> None:
        """SIGKILL of one of the two replicas, in the middle of what it draws."""
        before = server.replicas()
        assert len(before) == 2
        victim = max(before, key=lambda sign: sample(sign.metrics, "atelier_drawing_images"))
        os.kill(victim.pid, signal.SIGKILL)
        wait(lambda: not _runs(victim.pid), "the process is gone")
        others = {sign.replica for sign in before}
        wait(lambda: _serving(server) - others, "another replica in its place")

    def replace_every_replica(self, server: Any) -> None:
        """The application deployed anew: each replica drains and another takes its place."""
        from ray import serve

        from serving.app import APP, application

        before = {sign.replica for sign in server.replicas()}
        pids = [sign.pid for sign in server.replicas()]
        changed = self.ctx.recipe.model_copy(
            update={"serve": self.ctx.recipe.serve.model_copy(update={"max_queue": 96})}
        )
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.run(
            application(changed, str(self.ctx.home), self.ctx.registry_uri), name=APP, route_prefix="/",
            logging_config=quiet,
        )  # fmt: skip
        wait(lambda: not any(_runs(pid) for pid in pids), "all old replicas are gone")
        wait(lambda: len(_serving(server) - before) == 2, "two new replicas")


def _serving(server: Any) -> set[str]:
    """The replicas that have a model."""
    return {sign.replica for sign in server.replicas() if sign.state["served"]}


def _runs(pid: int) -> bool:
    """Whether the process lives; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
