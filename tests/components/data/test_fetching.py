"""The guarded client against servers that misbehave, on loopback."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from components.contracts.errors import RecipeError
from components.contracts.recipe import Collect
from components.contracts.records import FETCHES_SCHEMA, CollectReason
from components.data.fetching import Fetcher, require_contact
from components.data.guard import Guard, Refusal
from tests.components.data.faulty_server import ANSWERS, BODY, Answer, Server, hang_up, ok


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(dict(ANSWERS)) as running:
        yield running
        running.shutdown()


def fetcher(server: Server, **limits: object) -> Fetcher:
    given = {"timeout_s": 1.0, "max_bytes": 1_000_000, **limits}
    return Fetcher(Collect.model_validate(given), Guard((server.host,)))


def refused(server: Server, path: str, **limits: object) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        fetcher(server, **limits).fetch(f"http://{server.host}{path}")
    return refusal.value


def test_a_body_comes_whole_with_its_evidence(server: Server) -> None:
    answer = fetcher(server).fetch(f"http://{server.host}/ok")
    assert (answer.body, answer.http_status, answer.attempts, answer.opt_out) == (BODY, 200, 1, None)
    assert answer.sha256 == hashlib.sha256(BODY).hexdigest()
    assert server.agents == {Collect().user_agent}
    assert answer.fetch is not None and set(vars(answer.fetch)) | {"row"} == set(FETCHES_SCHEMA.names)
    assert (answer.fetch.address, answer.fetch.robots) == ("127.0.0.1", "allowed")
    assert answer.fetch.final_url == f"http://{server.host}/ok"
    assert abs((datetime.now(UTC) - answer.fetch.asked_at).total_seconds()) < 60 and answer.fetch.seconds > 0


def test_the_user_agent_that_is_sent_names_the_contact(server: Server) -> None:
    fetcher(server, contact="https://example.org/bot").fetch(f"http://{server.host}/ok")
    assert server.agents == {"AtelierCollector/0.1 (+https://example.org/bot)"}


@pytest.mark.parametrize(
    ("path", "reason", "attempts"),
    [
        ("/missing", CollectReason.HTTP_404, 1),
        ("/gone", CollectReason.HTTP_404, 1),
        ("/forbidden", CollectReason.HTTP_ERROR, 1),
        ("/broken", CollectReason.HTTP_ERROR, 3),
        ("/hang-up", CollectReason.CONNECTION, 3),
        ("/nonsense", CollectReason.CONNECTION, 3),
        ("/endless", CollectReason.TOO_MANY_BYTES, 1),
        ("/announced-huge", CollectReason.TOO_MANY_BYTES, 1),
        ("/short", CollectReason.TRUNCATED, 1),
        ("/short-chunks", CollectReason.TRUNCATED, 1),
        ("/gzip", CollectReason.NOT_AN_IMAGE, 1),
        ("/noai", CollectReason.OPT_OUT, 1),
        ("/private/x", CollectReason.ROBOTS_DISALLOWED, 1),
        ("/to-private", CollectReason.REFUSED_ADDRESS, 1),
        ("/to-metadata", CollectReason.REFUSED_ADDRESS, 1),
        ("/to-file", CollectReason.REFUSED_SCHEME, 1),
        ("/to-disallowed", CollectReason.ROBOTS_DISALLOWED, 1),
        ("/to-self", CollectReason.TOO_MANY_REDIRECTS, 1),
    ],
)
def test_every_fault_has_its_reason(server: Server, path: str, reason: CollectReason, attempts: int) -> None:
    refusal = refused(server, path)
    assert (refusal.reason, refusal.attempts) == (reason, attempts), refusal.detail
    if path != "/private/x" and not path.startswith("/to-"):
        # one request more where the first went over a kept connection that the server closed unanswered
        assert server.asked[path] == attempts + (path == "/hang-up")
    assert server.asked["/private/x"] == 0


def test_a_transient_failure_heals_on_retry(server: Server) -> None:
    answer = fetcher(server).fetch(f"http://{server.host}/heals")
    assert (answer.body, answer.attempts) == (BODY, 3)


@pytest.mark.parametrize("path", ["/slow-body", "/slow-head"])
def test_the_deadline_holds_against_drips(server: Server, path: str) -> None:
    started = time.monotonic()
    refusal = refused(server, path, timeout_s=0.4, max_attempts=1)
    assert refusal.reason is CollectReason.TIMEOUT
    assert time.monotonic() - started < 2.0  # each drip comes well within a timeout of single reads


def test_opt_out_and_robots_are_seen_also_where_they_are_not_followed(server: Server) -> None:
    lenient = fetcher(server, respect_opt_out=False, respect_robots=False)
    assert lenient.fetch(f"http://{server.host}/noai").opt_out == "X-Robots-Tag: max-snippet:-1, noai"
    assert server.asked["/robots.txt"] == 0
    assert "Disallow: /private/" in str(refused(server, "/private/x").opt_out)


@pytest.mark.parametrize(
    ("headers", "evidence"),
    [
        (["tdm-reservation: 1"], "tdm-reservation: 1"),
        (
            ["TDM-Reservation: 1", "tdm-policy: https://a.example/p"],
            "tdm-reservation: 1; tdm-policy: https://a.example/p",
        ),
        (
            ["tdm-reservation: 1", "X-Robots-Tag: all", "X-Robots-Tag: x: noai, AtelierCollector: noimageai"],
            "X-Robots-Tag: x: noai, AtelierCollector: noimageai | tdm-reservation: 1",
        ),
        (["X-Robots-Tag: otherbot: noai"], "tdmrep.json: /: tdm-reservation 1"),
        (["tdm-reservation: 0"], None),  # the header comes before the file
    ],
)
def test_opt_outs_are_followed_and_kept_verbatim(server: Server, headers: list[str], evidence: str | None) -> None:
    server.answers["/.well-known/tdmrep.json"] = ok(b'[{"location": "/", "tdm-reservation": 1}]')
    server.answers["/x"] = ok(BODY, *headers)
    if evidence is None:
        assert fetcher(server).fetch(f"http://{server.host}/x").opt_out is None
    else:
        refusal = refused(server, "/x")
        assert (refusal.reason, refusal.opt_out, refusal.http_status) == (CollectReason.OPT_OUT, evidence, 200)
        assert refusal.fetch is not None and "tdmrep" in refusal.fetch.parser


def test_a_refusal_knows_its_circumstances_and_holds_no_body(server: Server) -> None:
    refusal = refused(server, "/private/x")
    assert refusal.fetch is not None
    assert (refusal.fetch.robots, refusal.fetch.address, refusal.fetch.final_url) == ("disallowed", None, None)
    refusal = refused(server, "/endless").bare()
    assert (refusal.__cause__, refusal.__context__) == (None, None)
    assert refused(server, "/to-disallowed").fetch.final_url == f"http://{server.host}/to-disallowed"  # type: ignore[union-attr]


def test_redirects_within_the_limit_are_followed(server: Server) -> None:
    answer = fetcher(server).fetch(f"http://{server.host}/to-ok")
    assert answer.body == BODY and answer.fetch is not None and answer.fetch.final_url == f"http://{server.host}/ok"
    assert refused(server, "/to-ok", max_redirects=0).reason is CollectReason.TOO_MANY_REDIRECTS


def test_an_address_that_is_not_allowed_is_never_connected_to(server: Server) -> None:
    with pytest.raises(Refusal) as refusal:
        Fetcher(Collect(), Guard()).fetch(f"http://{server.host}/ok")
    assert refusal.value.reason is CollectReason.REFUSED_ADDRESS
    assert server.connections == 0


def test_hosts_of_others_are_not_asked_without_a_contact(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", ("93.184.216.34", 80))])
    with pytest.raises(Refusal, match=r"collect\.contact") as refusal:
        fetcher(server).fetch("http://other.example/x")  # as a redirect might lead there
    assert refusal.value.reason is CollectReason.REFUSED_ADDRESS


def test_connections_are_kept_and_robots_asked_once(server: Server) -> None:
    client = fetcher(server)
    for _ in range(20):
        client.fetch(f"http://{server.host}/ok")
    assert server.connections == 1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: client.fetch(f"http://{server.host}/ok"), range(40)))
    assert server.asked["/robots.txt"] == 1
    assert server.connections <= 5


def test_an_answer_longer_than_it_said_ends_its_connection(server: Server) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    more = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    server.answers["/long"] = lambda connection, _: connection.sendall(head + BODY + more)
    client = fetcher(server)
    for _ in range(3):
        assert client.fetch(f"http://{server.host}/long").body == BODY
    assert client.fetch(f"http://{server.host}/ok").body == BODY


def test_a_kept_connection_that_was_closed_is_opened_anew(server: Server) -> None:
    def once(connection: socket.socket, number: int) -> None:
        ok()(connection, number)
        connection.shutdown(socket.SHUT_RDWR)

    server.answers["/once"] = once
    client = fetcher(server)
    for _ in range(3):
        assert client.fetch(f"http://{server.host}/once").attempts == 1


@pytest.mark.parametrize(
    ("robots", "reason"),
    [
        (ok(b"", status="404 Not Found"), None),
        (ok(b"", status="403 Forbidden"), None),
        (ok(b"", "Location: /robots.txt", status="302 Found"), None),  # more than five: as if there were none
        (ok(b"", "Location: http://10.0.0.1/robots.txt", status="302 Found"), CollectReason.ROBOTS_DISALLOWED),
        (ok(b"", status="429 Too Many Requests"), CollectReason.ROBOTS_DISALLOWED),
        (ok(b"x", "Content-Encoding: gzip"), CollectReason.ROBOTS_DISALLOWED),
        (ok(b"", status="500 Oops"), CollectReason.ROBOTS_DISALLOWED),
        (ok(b"User-agent: *\nDisallow:", length=9000), CollectReason.ROBOTS_DISALLOWED),
        (hang_up, CollectReason.CONNECTION),
    ],
)
def test_robots_that_cannot_be_had(server: Server, robots: Answer, reason: CollectReason | None) -> None:
    server.answers["/robots.txt"] = robots
    if reason is None:
        assert fetcher(server).fetch(f"http://{server.host}/ok").body == BODY
    else:
        assert refused(server, "/ok").reason is reason
        assert server.asked["/ok"] == 0


def test_a_dead_host_is_tried_once_for_all_its_urls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    client = Fetcher(Collect(timeout_s=1), Guard((f"127.0.0.1:{port}",)))
    started = time.monotonic()
    for number in range(200):
        with pytest.raises(Refusal, match="connection refused") as refusal:
            client.fetch(f"http://127.0.0.1:{port}/{number}")
        assert refusal.value.reason is CollectReason.CONNECTION
    assert time.monotonic() - started < 5


def lists(*urls: str, **limits: object) -> None:
    require_contact(Collect.model_validate({"allow_hosts": ["127.0.0.1:8765"], **limits}), urls)


def test_a_list_with_hosts_of_others_needs_a_contact() -> None:
    own = "http://127.0.0.1:8765/a.jpg"
    lists(own, "", "ftp://a/b", "http://10.0.0.1/x", "http://0x7f.1/x", "http://[::1]:9/x", "http://[broken", "nothing")
    lists(own, "https://example.org/x.jpg", contact="https://example.org/bot")
    with pytest.raises(RecipeError, match=r"example\.org.*--set collect\.contact="):
        lists(own, "https://example.org/x.jpg")
    with pytest.raises(RecipeError, match="localhost"):  # that a name is private is known when it is resolved
        lists(own, "http://localhost/x")
    with pytest.raises(RecipeError, match="user_agent"):
        lists(own, user_agent="()")
