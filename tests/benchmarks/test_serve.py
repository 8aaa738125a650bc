"""What the serving benchmarks reckon with, on a small server of the test's own."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.benchmarks import serve, serve_load, serve_setup
from tests.benchmarks.serve_speed import mixed_steps


@pytest.fixture
def slow() -> Iterator[str]:
    """A server that answers after 20 ms, and every fifth request with 429."""
    number = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mine = next(number)
            time.sleep(0.02)
            self.send_response(429 if mine % 5 == 0 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_arrivals_are_as_many_as_asked_for_and_all_are_accounted_for(slow: str) -> None:
    answers, rate = serve_setup.arriving(serve_setup.rival(slow), 60.0, lambda _: 1, 1.0, 3, 5.0)
    total = len(answers.seconds) + len(answers.refused)
    assert 35 < total < 90 and not answers.open and abs(len(answers.refused) - total / 5) <= 1
    assert min(answers.seconds) >= 0.02 and answers.quantile(0.0) >= 0.02 and 0.3 * total < rate <= total


def test_what_is_not_answered_in_time_counts_as_long_as_it_waited() -> None:
    answers = serve_setup.Answers([1.0, 2.0], [10.0, 11.0], open=[9.0])
    assert answers.quantile(1.0) == 9.0 and answers.rate(10.0, 12.0) == 1.0
    answers.failed.append("500")
    with pytest.raises(RuntimeError, match="1 requests failed, the first: 500"):
        answers.require_sound()


def test_so_many_are_in_flight(slow: str) -> None:
    assert 4 < serve_setup.flying(serve_setup.rival(slow), 4, lambda _: 1, 0.5, 0.1) <= 0.8 * 4 / 0.02 + 20


def test_some_are_given_up(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    async def quickly(seconds: float) -> None:
        await asyncio.sleep(seconds)

    monkeypatch.setattr(serve_load, "one", lambda *given: quickly(0.3))
    assert 1 <= asyncio.run(serve_load._giving_up(slow, 30, 0)) <= 15


def test_steps_are_mixed_alike_on_both_sides() -> None:
    steps = [mixed_steps(i) for i in range(300)]
    assert steps == [mixed_steps(i) for i in range(300)] and min(steps) == 10 and max(steps) == 50


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["quick", "sped"]) == 2 and "no part sped" in capsys.readouterr().err
    assert set(serve.SLOW) <= set(serve.PARTS) and len(set(serve.figures())) == len(serve.figures())


def test_there_must_be_one_replica() -> None:
    with pytest.raises(RuntimeError, match="0 replicas were found"):
        serve_load.resident()
