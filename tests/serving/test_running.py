"""Cancelling: by the same key, from any replica, at once or within a step, and never a neighbour."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.auth import make_key
from serving.generation import Service
from serving.logbook import read_logbook
from serving.running import RunningRequests
from tests.serving.live import IMAGES, client, live


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Callable[[], RunningRequests]]:
    """Makes one process's view of the same folder."""
    made: list[RunningRequests] = []

    def make() -> RunningRequests:
        made.append(RunningRequests(tmp_path / "requests", every_s=0.02))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_only_the_same_key_or_an_administrator_cancels(replica: Callable[[], RunningRequests], tmp_path: Path) -> None:
    running, called = replica(), threading.Event()
    hold = running.hold("r1", "key1", called.set)
    hold.begin()
    assert len(list((tmp_path / "requests").iterdir())) == 1
    assert not running.cancel("r1", "key2") and not running.cancel("r1", None) and not running.cancel("r", "key1")
    assert not called.is_set()
    assert running.cancel("r1", "key1") and called.is_set()
    assert not running.cancel("r1", "key1"), "once is enough"
    hold.end()
    other = running.hold("r2", "key1", called.set)
    other.begin()
    assert running.cancel("r2", "key2", anybodys=True)
    assert list((tmp_path / "requests").iterdir()) == []


def test_another_replica_cancels(replica: Callable[[], RunningRequests], until: Callable[..., None]) -> None:
    here, there = replica(), replica()
    mine, neighbour = threading.Event(), threading.Event()
    holds = [here.hold("r1", "k", mine.set), here.hold("r2", "k", neighbour.set)]
    for hold in holds:
        hold.begin()
    assert there.cancel("r1", "k")
    until(mine.is_set)
    assert not neighbour.is_set() and not there.cancel("r1", "k")
    holds[1].end()
    assert not there.cancel("r2", "k"), "it is over"
    time.sleep(0.1)  # several looks at the folder
    assert not neighbour.is_set(), "what has ended is not cancelled"


def test_another_process_cancels(
    replica: Callable[[], RunningRequests], tmp_path: Path, until: Callable[..., None]
) -> None:
    called = threading.Event()
    hold = replica().hold("r1", "k", called.set)
    hold.begin()
    code = f"""
from pathlib import Path
from serving.running import RunningRequests
running = RunningRequests(Path({str(tmp_path / "requests")!r}))
print(running.cancel("r1", "x"), running.cancel("r1", "k"))
running.close()
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "True"], done.stderr
    until(called.is_set)


def test_what_ended_before_it_began_is_never_held(replica: Callable[[], RunningRequests], tmp_path: Path) -> None:
    running = replica()
    hold = running.hold("r1", "k", lambda: None)
    hold.end()
    hold.begin()  # the thread that begins it comes late
    assert list((tmp_path / "requests").iterdir()) == [] and not running.cancel("r1", "k")


def test_files_of_a_killed_server_go_and_a_lost_folder_cancels_nobody(
    replica: Callable[[], RunningRequests], tmp_path: Path, until: Callable[..., None]
) -> None:
    folder = tmp_path / "requests"
    folder.mkdir()
    (folder / "left").touch()
    os.utime(folder / "left", (time.time() - 7200,) * 2)
    running, noted, unnoted = replica(), threading.Event(), threading.Event()
    assert list(folder.iterdir()) == []
    running.hold("r1", "k", noted.set).begin()
    for path in folder.iterdir():
        path.rename(tmp_path / path.name)
    folder.rmdir()
    running.hold("r2", "k", unnoted.set).begin()  # there is no place to note it
    time.sleep(0.15)  # several looks
    assert not noted.is_set() and not unnoted.is_set()
    assert running.cancel("r2", "k") and unnoted.is_set(), "this replica can still cancel it"
    folder.mkdir()
    until(noted.is_set)  # its file is not there: somebody has deleted it


@pytest.fixture
def two(service: Callable[..., Any], make_painter: Any, tmp_path: Path) -> Iterator[Any]:
    """Two replicas over one home, each behind a server; the first one draws slowly."""
    parts = service(make_painter(seconds=0.05), max_steps=1000)
    first: Service = replace(parts.service, running=RunningRequests(tmp_path / "requests", every_s=0.02))
    second: Service = replace(parts.service, running=RunningRequests(tmp_path / "requests", every_s=0.02))
    with ExitStack() as stack:
        parts.urls = [stack.enter_context(live(each)) for each in (first, second)]
        yield parts
    for each in (first, second):
        each.running.close()


@pytest.mark.parametrize("where", [0, 1])
def test_a_request_is_cancelled_at_either_replica(two: Any, where: int, until: Callable[..., None]) -> None:
    engine = two.service.engine
    stranger = make_key(two.home / "keys.json", "other")
    with ThreadPoolExecutor(2) as pool, client(two.urls[0], two.key) as asking, client(two.urls[where], two.key) as it:
        ask = {"prompt": "a star", "num_inference_steps": 900}
        waiting = pool.submit(asking.post, IMAGES, json=ask, headers={"X-Request-ID": "mine"})
        until(lambda: engine.busy == 1)
        quick = pool.submit(asking.post, IMAGES, json={"prompt": "a heart", "num_inference_steps": 20})
        with client(two.urls[where], stranger) as other:
            refused = other.delete("/v1/requests/mine")
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "request_not_found"
        answer = it.delete("/v1/requests/mine")
        assert answer.json() == {"id": "mine", "object": "request", "cancelled": True}
        cancelled = waiting.result(10)
        assert quick.result(10).status_code == 200, "a neighbour in the same batch goes on"
        assert it.delete("/v1/requests/mine").status_code == 404
    assert cancelled.status_code == 499 and cancelled.json()["error"]["code"] == "cancelled"
    until(lambda: engine.busy == 0)
    assert len(two.painter.calls) < 200, "it was not drawn to its end"
    two.service.logbook.flush()
    rows = {(row["status"], row["error"]) for row in read_logbook(two.home / "logbook").to_pylist()}
    assert rows == {(499, "cancelled"), (200, None)}


def test_a_client_that_leaves_is_noticed(two: Any, until: Callable[..., None]) -> None:
    for more in ({}, {"stream": True}, {"stream": True, "progress": True, "partial_images": 3}):
        body = {"prompt": "a star", "num_inference_steps": 900, **more}
        with (
            client(two.urls[0], two.key) as it,
            pytest.raises(httpx.TimeoutException),
            it.stream("POST", IMAGES, json=body, timeout=0.4) as answer,
        ):
            for _ in answer.iter_lines():
                if two.service.engine.busy:
                    raise httpx.ReadTimeout("seen enough")
        until(lambda: two.service.engine.busy == 0)
    assert list((two.home / "requests").iterdir()) == []
    two.service.logbook.flush()
    rows = [(row["status"], row["error"]) for row in read_logbook(two.home / "logbook").to_pylist()]
    assert rows == [(499, "client_closed")] * 3
