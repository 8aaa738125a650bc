"""What an origin says of itself: asked once, followed over redirects, asked again when the origin is back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data import hosts, origins
from components.data.fetching import Fetcher
from components.data.guard import Guard, Refusal
from components.data.origins import backoff_s
from tests.components.data.faulty_server import BODY, Server, hang_up, ok

TDMREP = "/.well-known/tdmrep.json"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({"*": ok(), "/robots.txt": ok(b"User-agent: *\nDisallow: /no"), TDMREP: ok(b"[]")}) as running:
        yield running
        running.shutdown()


def fetcher(*servers: Server, **limits: object) -> Fetcher:
    given = Collect.model_validate({"timeout_s": 2.0, **limits})
    return Fetcher(given, Guard([server.host for server in servers]))


def test_many_threads_ask_once(server: Server) -> None:
    def slow(connection: socket.socket, number: int) -> None:
        time.sleep(0.1)
        ok(b"User-agent: *\nDisallow: /no")(connection, number)

    server.answers["/robots.txt"] = slow
    client = fetcher(server)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda n: client.fetch(f"http://{server.host}/{n}"), range(8)))) == 8
    assert (server.asked["/robots.txt"], server.asked[TDMREP]) == (1, 1)


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        ({}, {"/robots.txt", TDMREP}),
        ({"respect_robots": False}, {TDMREP}),
        ({"respect_opt_out": False}, {"/robots.txt"}),
    ],
)
def test_what_is_not_followed_is_not_asked_for(server: Server, limits: dict[str, bool], asked: set[str]) -> None:
    answer = fetcher(server, **limits).fetch(f"http://{server.host}/x")
    assert set(server.asked) == {"/x", *asked}
    assert answer.fetch is not None
    assert answer.fetch.robots == ("allowed" if "/robots.txt" in asked else "not asked")


def test_robots_on_another_host_speak_for_the_first(server: Server) -> None:
    with Server({"/rules": ok(b"User-agent: *\nDisallow: /x")}) as other:
        server.answers["/robots.txt"] = ok(b"", f"Location: http://{other.host}/rules", status="302 Found")
        with pytest.raises(Refusal) as refusal:
            fetcher(server, other).fetch(f"http://{server.host}/x")
        assert refusal.value.reason is CollectReason.ROBOTS_DISALLOWED
        other.shutdown()


@pytest.mark.parametrize("answer", [ok(b"", status="500 Oops"), ok(b"{", "X: y"), ok(b"x", "Content-Encoding: gzip")])
def test_a_tdmrep_file_that_cannot_be_read_reserves_nothing(server: Server, answer: object) -> None:
    server.answers[TDMREP] = answer  # type: ignore[assignment]
    assert fetcher(server).fetch(f"http://{server.host}/x").body == BODY


def test_an_origin_that_is_back_is_found_by_a_probe(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "PROBE_S", 0.3)
    robots, server.answers["/robots.txt"] = server.answers["/robots.txt"], hang_up
    client = fetcher(server, max_attempts=1)
    for detail in ("robots.txt: the server closed", "not asked"):
        with pytest.raises(Refusal, match=detail) as refusal:
            client.fetch(f"http://{server.host}/x")
        assert refusal.value.reason is CollectReason.CONNECTION
    server.answers["/robots.txt"] = robots
    time.sleep(0.35)
    assert client.fetch(f"http://{server.host}/x").body == BODY
    assert client.fetch(f"http://{server.host}/y").body == BODY
    assert server.asked["/robots.txt"] == 2


def test_pauses_between_attempts_are_random_and_bounded() -> None:
    for attempt in (1, 2, 3, 20):
        pauses = [backoff_s(attempt) for _ in range(200)]
        most = min(10.0, 0.25 * 2**attempt)
        assert 0 <= min(pauses) < 0.3 * most and 0.7 * most < max(pauses) <= most


def test_rules_of_many_origins_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "_KEPT_BYTES", 10_000)
    rules = ok(b"User-agent: *\n" + b"Disallow: /no\n" * 300)
    servers = [Server({"/robots.txt": rules, "/x": ok()}) for _ in range(4)]
    try:
        client = fetcher(*servers, respect_opt_out=False)
        for server in [*servers, servers[3], servers[2], servers[0]]:  # two fit: the first was forgotten
            assert client.fetch(f"http://{server.host}/x").body == BODY
        assert [server.asked["/robots.txt"] for server in servers] == [2, 1, 1, 1]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
