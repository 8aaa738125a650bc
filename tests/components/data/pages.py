"""A small, fast web server for tests of collecting: answers by path, which tests change while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

Answer = bytes | tuple[int, bytes]
NEVER = b"<no end>"  # in a body: what comes before it is sent, and then nothing more


def jpeg(seed: int, side: int = 96) -> bytes:
    """A JPEG of its own for every seed."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(corners).resize((side + side // 3, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


class Pages:
    """What the server answers.

    ``answer(path, times)`` gives the body, or status and body; ``times`` counts how often the path was asked for,
    this time included. robots.txt is not found unless it is answered.
    """

    def __init__(self, answer: Callable[[str, int], Answer | None]) -> None:
        self.answer = answer
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self.port = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """The URL of a path."""
        return f"http://{host}:{self.port}{path}"

    @property
    def host(self) -> str:
        """As the guard wants it."""
        return f"127.0.0.1:{self.port}"


class _Connection(asyncio.Protocol):
    def __init__(self, pages: Pages) -> None:
        self._pages, self._got = pages, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pages.connections += 1

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            head, self._got = self._got[:end], self._got[end + 4 :]
            path = head.split(b" ", 2)[1].decode()
            self._pages.asked[path] += 1
            answer = self._pages.answer(path, self._pages.asked[path])
            status, body = answer if isinstance(answer, tuple) else (200, answer) if answer is not None else (404, b"")
            start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            self._transport.write(start + body.partition(NEVER)[0])


@contextlib.contextmanager
def served(answer: Callable[[str, int], Answer | None]) -> Iterator[Pages]:
    """The server on a free loopback port, in a thread, for as long as the block lasts."""
    pages, loop, ready = Pages(answer), asyncio.new_event_loop(), threading.Event()

    async def run() -> None:
        server = await loop.create_server(lambda: _Connection(pages), "127.0.0.1", 0, backlog=1024)
        pages.port = server.sockets[0].getsockname()[1]
        ready.set()

    def work() -> None:
        loop.run_until_complete(run())
        loop.run_forever()
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield pages
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
