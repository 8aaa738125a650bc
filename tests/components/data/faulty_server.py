"""A loopback server that answers as it is told, well or badly, over plain HTTP or TLS."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable

BODY = bytes(range(256)) * 20
Answer = Callable[[socket.socket, int], None]


def ok(body: bytes = BODY, *headers: str, status: str = "200 OK", length: int | None = None) -> Answer:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    data = "\r\n".join(lines).encode() + body

    def send(connection: socket.socket, _number: int) -> None:
        connection.sendall(data)
        if length is not None and length != len(body):
            raise ConnectionAbortedError

    return send


def drip(head: bytes, step: bytes) -> Answer:
    def send(connection: socket.socket, _number: int) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(step)
            time.sleep(0.02)

    return send


def endless(connection: socket.socket, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(bytes(65536))


def heals(connection: socket.socket, number: int) -> None:
    (ok(b"", status="503 Busy") if number < 3 else ok())(connection, number)


def hang_up(_connection: socket.socket, _number: int) -> None:
    raise ConnectionAbortedError


ROBOTS = b"User-agent: *\nDisallow: /private/\n"
ANSWERS: dict[str, Answer] = {
    "/robots.txt": ok(ROBOTS),
    "/ok": ok(),
    "/heals": heals,
    "/hang-up": hang_up,
    "/missing": ok(b"no", status="404 Not Found"),
    "/gone": ok(b"no", status="410 Gone"),
    "/forbidden": ok(b"no", status="403 Forbidden"),
    "/broken": ok(b"no", status="500 Oops"),
    "/slow-body": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "/slow-head": drip(b"HTTP/1.1 200 OK\r\n", b"X"),
    "/endless": endless,
    "/announced-huge": ok(b"x", length=10**9),
    "/short": ok(BODY[:100], length=len(BODY)),
    "/short-chunks": ok(b"", "X: 1"),
    "/gzip": ok(b"\x1f\x8b", "Content-Encoding: gzip"),
    "/noai": ok(BODY, "X-Robots-Tag: max-snippet:-1, noai"),
    "/to-ok": ok(b"moved", "Location: /ok", status="302 Found"),
    "/to-private": ok(b"", "Location: http://10.0.0.1/x", status="301 Moved"),
    "/to-metadata": ok(b"", "Location: http://169.254.169.254/latest", status="307 Moved"),
    "/to-file": ok(b"", "Location: file:///etc/passwd", status="301 Moved"),
    "/to-disallowed": ok(b"", "Location: /private/x", status="301 Moved"),
    "/to-self": ok(b"", "Location: /to-self", status="302 Found"),
    "/nonsense": lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH_9.0\r\n"),
}


def chunks_cut(connection: socket.socket, _number: int) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + BODY[:100])
    raise ConnectionAbortedError


ANSWERS["/short-chunks"] = chunks_cut


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    request_queue_size = 128

    def __init__(self, answers: dict[str, Answer], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.tls = answers, tls
        self.asked, self.connections, self.agents = Counter[str](), 0, set[str]()
        self.times: list[tuple[float, str]] = []  # when each request came, and its path
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Failed handshakes are what some tests are about."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def setup(self) -> None:
        if self.server.tls is not None:  # in this connection's thread: a bad handshake must not stop the others
            self.request.settimeout(5)
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        with contextlib.suppress(OSError):
            while request := self.rfile.readline():
                path = request.split()[1].decode()
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"user-agent:"):
                        self.server.agents.add(line.split(b":", 1)[1].strip().decode())
                self.answer(path)

    def answer(self, path: str) -> None:
        server = self.server
        with server.lock:
            server.asked[path] += 1
            number = server.asked[path]
            server.times.append((time.monotonic(), path))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            server.answers.get(path, server.answers.get("*", ANSWERS["/missing"]))(self.connection, number)
        finally:
            with server.lock:
                server.at_once -= 1
