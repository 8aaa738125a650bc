"""Connections to checked addresses, with one deadline over everything that is waited for on them."""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

from components.data.guard import Target

_BUFFER = 1 << 16
_KEPT = 64  # idle connections of a task


@cache
def tls_context() -> ssl.SSLContext:
    """The TLS rules of this process: TLS 1.2 and newer, certificate and host name checked; loading takes 10-20 ms."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class PinnedConnection(http.client.HTTPConnection):
    """A connection to addresses that were checked; the name serves TLS and the Host header only.

    ``deadline`` (monotonic seconds) and ``allowance`` (bytes that may still be received) hold for everything that
    is read and are set anew before each request.
    """

    def __init__(self, target: Target, addresses: list[str], tls: ssl.SSLContext | None) -> None:
        super().__init__(target.host, target.port)
        self.origin = target.origin
        self._addresses, self._context = addresses, tls
        self.address: str | None = None  # that it is connected to
        self.deadline = 0.0
        self.allowance = 0
        self.clean = True  # False once an answer was longer than it said

    def connect(self) -> None:
        """Connect to the first checked address that answers; each gets its share of the time that is left."""
        problem: OSError = ConnectionRefusedError()
        for number, address in enumerate(self._addresses):
            share = _left(self.deadline) / (len(self._addresses) - number)
            try:
                raw = socket.create_connection((address, self.port), timeout=share)
            except OSError as error:  # TimeoutError among them
                problem = error
            else:
                self.address = address
                break
        else:
            raise problem
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                raw.settimeout(_left(self.deadline))
                raw = self._context.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise
        self.sock = _DeadlineSocket(raw, self)

    @property
    def idle(self) -> bool:
        """True if it is open and nothing has come that nobody asked for, an end included."""
        return isinstance(self.sock, _DeadlineSocket) and self.clean and not self.sock.readable()


class Pool:
    """Idle connections of all threads of a task, by origin; the longest unused goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, PinnedConnection] = OrderedDict()
        self._by_origin: dict[str, list[int]] = {}
        self._lock = Lock()

    def take(self, origin: str) -> PinnedConnection | None:
        """An idle connection to the origin, the one used last, or None."""
        while True:
            with self._lock:
                numbers = self._by_origin.get(origin)
                if not numbers:
                    return None
                connection = self._kept.pop(numbers.pop())
                if not numbers:
                    del self._by_origin[origin]
            if connection.idle:
                return connection
            connection.close()

    def give(self, connection: PinnedConnection) -> None:
        """Keep a connection whose answer was read to its end."""
        with self._lock:
            self._kept[id(connection)] = connection
            self._by_origin.setdefault(connection.origin, []).append(id(connection))
            oldest = None
            if len(self._kept) > _KEPT:
                number, oldest = self._kept.popitem(last=False)
                numbers = self._by_origin[oldest.origin]
                numbers.remove(number)
                if not numbers:
                    del self._by_origin[oldest.origin]
        if oldest is not None:
            oldest.close()

    def close(self) -> None:
        """Close all that are idle."""
        with self._lock:
            kept = list(self._kept.values())
            self._kept.clear()
            self._by_origin.clear()
        for connection in kept:
            connection.close()


class _DeadlineSocket:
    """As much of a socket as http.client uses; every wait ends at the connection's deadline, so that a server
    that sends one byte at a time cannot hold a request longer.

    The socket itself never blocks: what has come already is read without asking the system first whether it has.
    """

    def __init__(self, raw: socket.socket, connection: PinnedConnection) -> None:
        raw.setblocking(False)
        self._raw, self._connection = raw, connection
        self._poll = select.poll()
        self._users = 1  # this and the readers; http.client closes the socket before it reads the last answer

    def sendall(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._patiently(self._raw.send, left, select.POLLOUT) :]

    def readable(self) -> bool:
        self._poll.register(self._raw, select.POLLIN)
        return bool(self._poll.poll(0))

    def receive_into(self, buffer: Any) -> int:
        received = self._patiently(self._raw.recv_into, buffer, select.POLLIN)
        self._connection.allowance -= received
        if self._connection.allowance < 0:
            raise http.client.LineTooLong("header section")
        return received

    def _patiently(self, transfer: Callable[[Any], int], buffer: Any, event: int) -> int:
        """What ``transfer`` gives, as soon as it need not wait."""
        while True:
            left = _left(self._connection.deadline)
            try:
                return transfer(buffer)
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except BlockingIOError:
                wanted = event
            self._poll.register(self._raw, wanted)
            self._poll.poll(1000 * left)

    def makefile(self, mode: str, *_: Any) -> io.BufferedReader:
        self._users += 1
        return _Reader(_DeadlineReader(self), self._connection)

    def close(self) -> None:
        self.release()

    def release(self) -> None:
        self._users -= 1
        if self._users <= 0:
            self._raw.close()


class _DeadlineReader(io.RawIOBase):
    def __init__(self, source: _DeadlineSocket) -> None:
        super().__init__()
        self._source = source
        self.ended = False

    def close(self) -> None:
        if not self.closed:
            self._source.release()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return 0 if self.ended else self._source.receive_into(buffer)


class _Reader(io.BufferedReader):
    """One answer's reader; it notes bytes beyond the answer's end, after which the connection is of no use."""

    def __init__(self, raw: _DeadlineReader, connection: PinnedConnection) -> None:
        super().__init__(raw, _BUFFER)
        self._source, self._connection = raw, connection

    def close(self) -> None:
        if not self.closed:
            self._source.ended = True  # so that peek reads the buffer only
            if self.peek(1):
                self._connection.clean = False
        super().close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left
