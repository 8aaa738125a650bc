"""Connections: which address, which time, which bytes, and which are kept."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from components.data import connections as module
from components.data.connections import PinnedConnection, Pool
from components.data.guard import Target, target_of
from tests.components.data.faulty_server import BODY, Server, ok


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({"/ok": ok()}) as running:
        yield running
        running.shutdown()


def opened(server: Server, addresses: tuple[str, ...] = ("127.0.0.1",), host: str = "") -> PinnedConnection:
    target = target_of(f"http://{host or '127.0.0.1'}:{server.server_address[1]}/ok")
    connection = PinnedConnection(target, list(addresses), None)
    connection.deadline, connection.allowance = time.monotonic() + 5, 1 << 20
    return connection


def ask(connection: PinnedConnection) -> bytes:
    connection.deadline, connection.allowance = time.monotonic() + 5, 1 << 20
    connection.request("GET", "/ok")
    return connection.getresponse().read()


def test_the_name_is_sent_and_the_address_is_connected_to(server: Server) -> None:
    with closing(opened(server, host="no-such-name.invalid")) as connection:
        assert ask(connection) == BODY
        assert connection.address == "127.0.0.1"


def test_the_next_address_is_tried_where_one_refuses_or_is_silent(server: Server) -> None:
    # a socket whose queue is full takes no more connections and does not refuse them
    with socket.socket() as silent, closing(opened(server, ("127.0.0.2", "127.0.0.3", "127.0.0.1"))) as connection:
        silent.bind(("127.0.0.3", server.server_address[1]))
        silent.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        connection.deadline = time.monotonic() + 2
        connection.connect()
        assert connection.address == "127.0.0.1"
        assert ask(connection) == BODY
        for filler in fillers:
            filler.close()


def test_no_address_is_tried_after_the_deadline(server: Server) -> None:
    connection = opened(server)
    connection.deadline = time.monotonic() - 1
    with pytest.raises(TimeoutError):
        connection.connect()
    assert server.connections == 0


def test_a_header_section_without_end_is_cut_off(server: Server) -> None:
    line = b"X-Long: " + b"x" * 60_000 + b"\r\n"

    def endless(raw: socket.socket, _number: int) -> None:
        raw.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            raw.sendall(line)

    server.answers["/ok"] = endless
    with closing(opened(server)) as connection:
        connection.allowance = 200_000
        connection.request("GET", "/ok")
        with pytest.raises(module.http.client.LineTooLong):
            connection.getresponse()
        assert connection.allowance < 0


def test_continue_answers_without_end_are_cut_off(server: Server) -> None:
    def endless(raw: socket.socket, _number: int) -> None:
        while True:
            raw.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    server.answers["/ok"] = endless
    with closing(opened(server)) as connection:
        connection.allowance = 200_000
        connection.request("GET", "/ok")
        with pytest.raises(module.http.client.LineTooLong):
            connection.getresponse()


def test_idle_connections_are_kept_by_origin_and_the_oldest_closed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    pool, origin = Pool(), Target("http", "127.0.0.1", server.server_address[1], "/").origin
    kept = [opened(server) for _ in range(3)]
    for connection in kept:
        assert ask(connection) == BODY and connection.idle
        pool.give(connection)
    assert not kept[0].idle
    assert pool.take("http://other.example") is None
    assert pool.take(origin) is kept[2]  # the one used last: the others may grow old
    assert pool.take(origin) is kept[1]
    assert pool.take(origin) is None
    pool.give(kept[1])
    pool.close()
    assert not kept[1].idle and pool.take(origin) is None


def test_what_the_server_has_closed_or_spoken_on_is_not_taken(server: Server) -> None:
    pool, origin = Pool(), Target("http", "127.0.0.1", server.server_address[1], "/").origin
    for more in (b"HTTP/1.1 200 OK\r\n\r\nunasked", None):

        def late(raw: socket.socket, number: int, more: bytes | None = more) -> None:
            ok()(raw, number)
            time.sleep(0.05)
            if more is None:
                raise ConnectionAbortedError
            raw.sendall(more)

        server.answers["/ok"] = late
        connection = opened(server)
        assert ask(connection) == BODY
        pool.give(connection)
        ends = time.monotonic() + 5
        while connection.idle and time.monotonic() < ends:
            time.sleep(0.01)
        assert pool.take(origin) is None
