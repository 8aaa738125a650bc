"""Ports for the servers that tests start."""

from __future__ import annotations

import random
import socket

BELOW = 32_768  # where Linux begins to hand out ports by itself, for outgoing connections and for ``bind(0)``


def unused_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens, and which nothing takes by chance before the test does.

    ``bind(0)`` would name one of the system's own range: minutes later, when the server under test asks for it,
    a Ray worker or a connection may hold it.
    """
    choice = random.SystemRandom()  # a seed that a test sets must not give two processes the same ports
    while True:
        port = choice.randrange(20_000, BELOW)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
