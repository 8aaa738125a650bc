"""Connections to checked addresses, with one deadline over everything that is waited for on them."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from components.data.guard import Target

_BUFFER = 1 << 16


class PinnedConnection(http.client.HTTPConnection):
    """A connection to addresses that were checked; the name serves TLS and the Host header only."""

    def __init__(self, target: Target, addresses: list[str], tls: ssl.SSLContext | None) -> None:
        super().__init__(target.host, target.port)
        self._addresses, self._context = addresses, tls
        self.deadline = 0.0  # monotonic seconds

    def connect(self) -> None:
        """Connect to the first checked address that answers before the deadline."""
        problem: OSError = ConnectionRefusedError()
        for address in self._addresses:
            try:
                raw = socket.create_connection((address, self.port), timeout=_left(self.deadline))
                break
            except TimeoutError:
                raise
            except OSError as error:
                problem = error
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


class _DeadlineSocket:
    """As much of a socket as http.client uses; every wait ends at the connection's deadline, so that a server
    that sends one byte at a time cannot hold a request longer."""

    def __init__(self, raw: socket.socket, connection: PinnedConnection) -> None:
        self._raw, self._connection = raw, connection
        self._users = 1  # this and the readers; http.client closes the socket before it reads the last answer

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(_left(self._connection.deadline))
        self._raw.sendall(data)

    def makefile(self, mode: str, *_: Any) -> io.BufferedReader:
        self._users += 1
        return io.BufferedReader(_DeadlineReader(self._raw, self._connection, self._release), _BUFFER)

    def close(self) -> None:
        self._release()

    def _release(self) -> None:
        self._users -= 1
        if self._users <= 0:
            self._raw.close()


class _DeadlineReader(io.RawIOBase):
    def __init__(self, raw: socket.socket, connection: PinnedConnection, release: Callable[[], None]) -> None:
        super().__init__()
        self._raw, self._connection, self._on_close = raw, connection, release

    def close(self) -> None:
        if not self.closed:
            self._on_close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._raw.settimeout(_left(self._connection.deadline))
        return self._raw.recv_into(buffer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left
