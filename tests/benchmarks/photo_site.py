"""A light web server of photo-like JPEGs, in a process of its own, for benchmarks of collecting.

``python -m tests.benchmarks.photo_site`` prints its port and serves until its standard input closes. Every path
``/p/N.jpg`` is answered from memory with one write, so that the server takes little of the cores that
it shares with what is measured. ``/times`` says when pictures were asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "bench-photos"
WIDTH, HEIGHT, DISTINCT = 1024, 768, 400


def photo(seed: int) -> bytes:
    """A JPEG of 1024x768, quality 90, of about the size of a photo's: gradients, shapes, grain in some places."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, w, h = rng.integers(0, WIDTH), rng.integers(0, HEIGHT), *rng.integers(10, 200, 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((int(x), int(y), int(x + w), int(y + h)), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    image = image.filter(ImageFilter.GaussianBlur(1.2))
    strength = np.linspace(0.5, 6, WIDTH) * rng.uniform(0.6, 1.4)
    grain = rng.normal(0, 1, (HEIGHT, WIDTH, 1)) * strength[None, :, None]
    pixels = np.clip(np.asarray(image, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def photos() -> list[Path]:
    """The pictures' files, made once and kept in ``build/``."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    paths = [FOLDER / f"{n:04d}.jpg" for n in range(DISTINCT)]
    for n, path in enumerate(paths):
        if not path.exists():
            (part := path.with_suffix(".part")).write_bytes(photo(n))
            part.replace(path)
    return paths


class _Connection(asyncio.Protocol):
    def __init__(self, answers: list[bytes], times: list[float]) -> None:
        self._answers, self._times, self._got = answers, times, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            head, self._got = self._got[:end], self._got[end + 4 :]
            path = head.split(b" ", 2)[1]
            if path.startswith(b"/p/"):
                self._times.append(time.time())
                self._transport.write(self._answers[int(path[3:-4]) % len(self._answers)])
            elif path == b"/times":
                self._transport.write(_answer("200 OK", json.dumps(self._times).encode()))
                self._times.clear()
            else:
                self._transport.write(_answer("404 Not Found", b""))
            if b"onnection: close" in head:
                self._transport.close()


def _answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def serve() -> None:
    """Serve until standard input closes."""
    answers = [_answer("200 OK", path.read_bytes()) for path in photos()]
    times: list[float] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answers, times), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True).start()
    await ended.wait()


@dataclass(frozen=True)
class PhotoSite:
    """The running server."""

    port: int

    def urls(self, number: int) -> list[str]:
        """URLs of ``number`` pictures; every 400th is the same picture under another name."""
        return [f"http://127.0.0.1:{self.port}/p/{n}.jpg" for n in range(number)]

    def times(self) -> list[float]:
        """When pictures were asked for since this was called last, in seconds of ``time.time()``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/times", timeout=10) as answer:
            return list(json.load(answer))


@contextlib.contextmanager
def photo_site() -> Iterator[PhotoSite]:
    """The server in a process of its own, for as long as the block lasts."""
    command = [sys.executable, "-m", "tests.benchmarks.photo_site"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        yield PhotoSite(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(10)


if __name__ == "__main__":
    asyncio.run(serve())
