"""Faults of the web that collecting must survive, on real loopback servers."""

from __future__ import annotations

import gzip
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.recipe import Collect, Recipe
from components.contracts.records import LEDGER_SCHEMA, CollectReason
from components.data.collecting import collect
from components.data.fetching import Answer, Fetcher
from components.data.guard import Guard, Refusal
from components.runtime.stage import Context
from tests.benchmarks.data_faults import CAP_MIB, FAULTS, measured
from tests.components.data import certificates
from tests.components.data.faulty_server import BODY, Server, ok
from tests.components.data.pages import served

MALFORMED = Path(__file__).parents[4] / "shared" / "data" / "malformed_images.parquet"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({"/ok": ok()}) as running:
        yield running
        running.shutdown()


def fetcher(*hosts: str, tls: Callable[[], ssl.SSLContext] | None = None, **limits: object) -> Fetcher:
    given = Collect.model_validate({"timeout_s": 5.0, "max_bytes": 1_000_000, **limits})
    return Fetcher(given, Guard(hosts), **({"tls": tls} if tls else {}))


def outcome(client: Fetcher, url: str) -> Answer | Refusal:
    try:
        return client.fetch(url)
    except Refusal as refusal:
        return refusal


def outcomes(client: Fetcher, urls: list[str], threads: int = 16) -> list[Answer | Refusal]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda url: outcome(client, url), urls))


def reason(found: Answer | Refusal) -> CollectReason | None:
    return found.reason if isinstance(found, Refusal) else None


class Resolver:
    """Names under ``.test`` as they are told, one answer after the other; anything else as the system has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[str]) -> None:
        self._answers = {f"{name}.test": iter(addresses) for name, addresses in answers.items()}
        self.asked, self._system = Counter[str](), socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)

    def _resolve(self, host: str, port: Any, *rest: Any, **named: Any) -> Any:
        if not str(host).endswith(".test"):
            return self._system(host, port, *rest, **named)
        self.asked[host] += 1
        return self._system(next(self._answers[host]), port, *rest, **named)


# -- addresses


def test_an_answer_of_dns_that_changes_between_check_and_use_changes_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = server.server_address[1]
    resolver = Resolver(monkeypatch, rebinding=["127.0.0.1", *["127.0.0.2"] * 20])
    with socket.create_server(("127.0.0.2", port)) as secret:
        server.answers["/ok"] = ok(BODY, "Connection: close")  # so that every request connects anew
        client = fetcher(f"rebinding.test:{port}")
        found = outcomes(client, [f"http://rebinding.test:{port}/ok"] * 20, threads=4)
        assert [reason(one) for one in found] == [None] * 20
        secret.setblocking(False)
        with pytest.raises(BlockingIOError):
            secret.accept()
    assert server.connections >= 20
    assert resolver.asked == {"rebinding.test": 1}


def test_a_name_that_first_was_private_is_not_asked_when_it_turns_public(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch, turning=["127.0.0.1", "93.184.216.34"])
    client, url = fetcher(contact="me@example.org"), f"http://turning.test:{server.server_address[1]}/ok"
    assert [reason(outcome(client, url)) for _ in range(3)] == [CollectReason.REFUSED_ADDRESS] * 3
    assert resolver.asked == {"turning.test": 1} and server.connections == 0


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://127.0.0.1:{other}/ok", CollectReason.REFUSED_ADDRESS),
        ("//0x7f.1:{other}/ok", CollectReason.REFUSED_ADDRESS),
        ("http://[::ffff:127.0.0.1]:{other}/ok", CollectReason.REFUSED_ADDRESS),
        ("http://inside.test:{other}/ok", CollectReason.REFUSED_ADDRESS),
        ("http://169.254.169.254/latest/meta-data/", CollectReason.REFUSED_ADDRESS),
        ("file:///etc/passwd", CollectReason.REFUSED_SCHEME),
        ("FILE:/etc/passwd", CollectReason.REFUSED_SCHEME),
        ("http://[::1", CollectReason.REFUSED_SCHEME),
        ("data:image/png;base64,AAAA", CollectReason.REFUSED_SCHEME),
    ],
)
def test_every_redirect_is_checked_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, location: str, why: CollectReason
) -> None:
    Resolver(monkeypatch, inside=["127.0.0.1"] * 3)
    with Server({"/ok": ok()}) as other:
        to = location.format(other=other.server_address[1])
        server.answers["/hop"] = ok(b"", f"Location: {to}", status="302 Found")
        found = outcome(fetcher(server.host), f"http://{server.host}/hop")
        assert reason(found) is why
        assert other.connections == 0
        other.shutdown()


# -- time and bytes


@pytest.mark.parametrize(
    ("fault", "urls"), [("endless", 32), ("largest", 16), ("drip", 4), ("png-at-cap", 2), ("webp-at-cap", 2)]
)
def test_peak_memory_of_a_worker_stays_within_the_caps(fault: str, urls: int) -> None:
    result = measured(fault, urls)
    assert result.counts == {FAULTS[fault].outcome: urls}
    assert result.peak_mib <= CAP_MIB


def test_a_compressed_bomb_is_not_unfolded(server: Server) -> None:
    bomb = gzip.compress(bytes(50_000_000), 9)
    server.answers["/bomb"] = ok(bomb, "Content-Encoding: gzip", "Content-Type: image/png")
    started = time.monotonic()
    found = outcome(fetcher(server.host), f"http://{server.host}/bomb")
    assert isinstance(found, Refusal) and found.reason is CollectReason.NOT_AN_IMAGE and "gzip" in found.detail
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("length", ["-5", "abc", "99999999999999999999", "+3", "5\r\nContent-Length: 7"])
def test_lengths_that_are_none_end_with_a_reason(server: Server, length: str) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n".encode()

    def answer(connection: socket.socket, _number: int) -> None:
        connection.sendall(head + b"12345")
        raise ConnectionAbortedError

    server.answers["/x"] = answer
    found = outcome(fetcher(server.host), f"http://{server.host}/x")
    assert isinstance(found, Answer) or found.reason in (CollectReason.TRUNCATED, CollectReason.TOO_MANY_BYTES)


def test_an_error_page_without_end_does_not_hide_its_status(server: Server) -> None:
    def drip(connection: socket.socket, _number: int) -> None:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    server.answers["/drip"] = drip
    started = time.monotonic()
    assert reason(outcome(fetcher(server.host), f"http://{server.host}/drip")) is CollectReason.HTTP_404
    assert time.monotonic() - started < 4


# -- a host that asks for a pause


@pytest.mark.parametrize(
    ("asks", "at_least"),
    [(lambda: "1", 0.99), (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True), 0.9)],
    ids=["seconds", "date"],
)
def test_retry_after_is_honoured_for_the_whole_host(server: Server, asks: Callable[[], str], at_least: float) -> None:
    def busy_once(connection: socket.socket, number: int) -> None:
        send = ok(b"", f"Retry-After: {asks()}", status="429 Too Many Requests") if number == 1 else ok()
        send(connection, number)

    server.answers |= {"/busy": busy_once, "*": ok()}
    client = fetcher(server.host, per_host=1, respect_robots=False, respect_opt_out=False)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.fetch, f"http://{server.host}/busy")
        while not server.times:
            time.sleep(0.001)
        others = [pool.submit(client.fetch, f"http://{server.host}/{n}") for n in range(3)]
        assert first.result().attempts == 2
        assert [other.result().attempts for other in others] == [1, 1, 1]
    times = sorted(at for at, _ in server.times)
    assert times[1] - times[0] >= at_least


def test_a_pause_longer_than_the_recipe_waits_ends_the_rows_and_asks_no_more(server: Server) -> None:
    server.answers["*"] = ok(b"", "Retry-After: 3600", status="503 Busy")
    client = fetcher(server.host, respect_robots=False, respect_opt_out=False)
    found = [outcome(client, f"http://{server.host}/{n}") for n in range(50)]
    assert Counter(reason(one) for one in found) == {CollectReason.HTTP_ERROR: 50}
    assert isinstance(found[0], Refusal) and (found[0].attempts, found[0].http_status) == (1, 503)
    assert sum(server.asked.values()) == 1


def test_a_host_that_asks_for_too_much_delay_is_left_alone(server: Server) -> None:
    server.answers["/robots.txt"] = ok(b"User-agent: *\nCrawl-delay: 60")
    assert reason(outcome(fetcher(server.host), f"http://{server.host}/ok")) is CollectReason.CRAWL_DELAY
    assert server.asked["/ok"] == 0


def test_the_crawl_delay_of_robots_is_kept_over_all_threads(server: Server) -> None:
    server.answers["/robots.txt"] = ok(b"User-agent: *\nCrawl-delay: 0.2")
    found = outcomes(fetcher(server.host, respect_opt_out=False), [f"http://{server.host}/ok"] * 4, threads=4)
    assert [reason(one) for one in found] == [None] * 4
    times = sorted(at for at, path in server.times if path == "/ok")
    assert times[-1] - server.times[0][0] >= 3 * 0.2


# -- TLS


@pytest.fixture(scope="module")
def authority() -> certificates.Pair:
    return certificates.issue("authority.test")


@pytest.mark.parametrize(
    ("kind", "detail"),
    [("good", ""), ("self-signed", "self-signed"), ("wrong name", "mismatch"), ("expired", "expired")],
)
def test_certificates_are_checked_once_for_all_urls(
    authority: certificates.Pair, tmp_path: Path, kind: str, detail: str
) -> None:
    issued = {
        "good": lambda: certificates.issue("127.0.0.1", authority),
        "self-signed": lambda: certificates.issue("127.0.0.1"),
        "wrong name": lambda: certificates.issue("other.test", authority),
        "expired": lambda: certificates.issue("127.0.0.1", authority, days=(-9, -2)),
    }[kind]()
    trusted = ssl.create_default_context(cadata=authority.pem())
    with Server({"/ok": ok()}, issued.server_context(tmp_path)) as server:
        client = fetcher(server.host, tls=lambda: trusted, respect_robots=False, respect_opt_out=False)
        found = [outcome(client, f"https://{server.host}/ok") for _ in range(5)]
        if kind == "good":
            assert [reason(one) for one in found] == [None] * 5
        else:
            assert [reason(one) for one in found] == [CollectReason.TLS] * 5
            first = found[0]
            assert isinstance(first, Refusal) and first.attempts == 1 and detail in first.detail
            assert "not asked" in str(found[4])
        assert server.connections <= 1
        client.close()
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "ends"),
    [(b"", (CollectReason.CONNECTION, 2)), (b"HTTP/1.1 400 Bad Request\r\n\r\n", (CollectReason.TLS, 1))],
    ids=["hangs up", "speaks plain HTTP"],
)
def test_a_server_that_speaks_no_tls(answer: bytes, ends: tuple[CollectReason, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        host = f"127.0.0.1:{listening.getsockname()[1]}"

        def reply() -> None:
            for _ in range(ends[1]):
                with closing(listening.accept()[0]) as connection:
                    connection.recv(10_000)
                    connection.sendall(answer)

        pool.submit(reply)
        client = fetcher(host, max_attempts=2, respect_robots=False, respect_opt_out=False)
        found = outcome(client, f"https://{host}/x")
    assert isinstance(found, Refusal) and (found.reason, found.attempts) == ends


# -- hosts with many URLs


def test_a_host_that_dies_is_not_asked_for_every_one_of_its_urls(server: Server) -> None:
    client = fetcher(server.host)
    assert reason(outcome(client, f"http://{server.host}/ok")) is None
    server.shutdown()
    server.server_close()
    client.close()
    started = time.monotonic()
    found = outcomes(client, [f"http://{server.host}/{n}" for n in range(10_000)])
    assert time.monotonic() - started < 20
    assert Counter(reason(one) for one in found) == {CollectReason.CONNECTION: 10_000}
    assert all(isinstance(one, Refusal) and one.fetch is not None for one in found)


def test_a_host_that_takes_connections_and_never_answers_ends_soon() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        client = fetcher(host, timeout_s=0.3, respect_robots=False, respect_opt_out=False)
        started = time.monotonic()
        found = outcomes(client, [f"http://{host}/{n}" for n in range(10_000)])
    assert time.monotonic() - started < 20
    assert Counter(reason(one) for one in found) == {CollectReason.TIMEOUT: 10_000}


def test_ten_thousand_urls_on_one_host() -> None:
    def page(path: str, _times: int) -> bytes | None:
        return None if path in ("/robots.txt", "/.well-known/tdmrep.json") or path.endswith("7") else path.encode()

    with served(page) as pages:
        client = fetcher(pages.host, per_host=8)
        found = outcomes(client, [pages.url(f"/{n}") for n in range(10_000)])
        client.close()
    assert all(isinstance(one, Answer) == (n % 10 != 7) for n, one in enumerate(found))
    assert all(one.body == f"/{n}".encode() for n, one in enumerate(found) if isinstance(one, Answer))
    assert pages.asked["/robots.txt"] == 1 and sum(pages.asked.values()) == 10_002
    assert pages.connections <= 8 + 2


# -- real broken pictures through the whole stage


def high_water_mib() -> dict[int, float]:
    """By process of Ray's workers: the most memory that each has had resident."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::" in " ".join(process.cmdline()):
                status = Path(f"/proc/{process.pid}/status").read_text()
                found[process.pid] = int(status.split("VmHWM:")[1].split()[0]) / 1024
        except (psutil.Error, OSError, IndexError):
            continue
    return found


@pytest.mark.integration
@pytest.mark.skipif(not MALFORMED.exists(), reason="shared/data/malformed_images.parquet is not here")
@pytest.mark.usefixtures("local_ray")
def test_every_malformed_picture_ends_as_a_success_or_with_a_reason(tmp_path: Path) -> None:
    bodies = pq.read_table(MALFORMED, columns=["bytes"])["bytes"].to_pylist()
    assert len(bodies) == 764
    with served(lambda path, _: bodies[int(path[1:])] if path[1:].isdigit() else None) as pages:
        recipe = Recipe.model_validate(
            {
                "name": "t",
                "collect": {"timeout_s": 30.0, "shard_size": 200, "per_host": 64},
                "run": {"root": str(tmp_path), "object_store_mb": 200, "collect_tasks": 2, "collect_threads": 8},
            }
        )
        urls = pa.table({"url": [pages.url(f"/{n}") for n in range(764)], "caption": ["x"] * 764})
        before = high_water_mib()
        started = time.monotonic()
        collection = collect(Context.of(recipe), urls, (pages.host,))
        assert time.monotonic() - started < 120
    ledger = pq.read_table(collection.path("ledger.parquet"), schema=LEDGER_SCHEMA)
    reasons = Counter(ledger["reason"].to_pylist())
    allowed = {None, "truncated", "not_an_image", "too_many_pixels"}
    assert ledger.num_rows == 764 and set(map(str, reasons)) <= set(map(str, allowed)), reasons
    assert reasons[None] > 100 and reasons["truncated"] > 50
    grown = {pid: peak - before.get(pid, 250.0) for pid, peak in high_water_mib().items()}
    assert grown and max(grown.values()) <= CAP_MIB
