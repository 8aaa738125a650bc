"""Peak memory of a collecting worker against a hostile server: bombs, endless bodies, drips.

A worker is a process of its own that fetches a shard through the same parts as a task of the stage: guarded
fetcher, fetch engine, decoder. Its peak is the high-water mark of its resident memory above what it holds after
one small picture. The limit is what the recipe says: the byte cap, the pixel cap as RGB, and 200 MiB.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from components.contracts.recipe import Collect
from tests.benchmarks.harness import Row, limit

ROOT = Path(__file__).parents[2]
LIMITS = Collect(timeout_s=30.0, max_attempts=1, image_size=256, per_host=64)
CAP_MIB = (LIMITS.max_bytes + LIMITS.max_pixels * 3) / 2**20 + 200
THREADS = 16
_CHUNK = bytes(1 << 16)


@dataclass(frozen=True)
class Fault:
    """What the server does, and how every row must end: a ``CollectReason``, or "success"."""

    said: str
    outcome: str
    send: Callable[[], AsyncIterator[bytes]]
    timeout_s: float = LIMITS.timeout_s
    urls: int = 64


def _head(*headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Connection: close", *headers, "", ""]).encode()


def _whole(body: Callable[[], bytes], *headers: str) -> Callable[[], AsyncIterator[bytes]]:
    async def send() -> AsyncIterator[bytes]:
        yield _head(f"Content-Length: {len(body())}", *headers) + body()

    return send


async def _endless() -> AsyncIterator[bytes]:
    yield _head()
    while True:
        yield _CHUNK


async def _endless_chunks() -> AsyncIterator[bytes]:
    yield _head("Transfer-Encoding: chunked")
    while True:
        yield b"10000\r\n" + _CHUNK + b"\r\n"


async def _endless_headers() -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-More: " + bytes(60_000).replace(b"\0", b"x") + b"\r\n"


async def _drip() -> AsyncIterator[bytes]:
    yield _head(f"Content-Length: {LIMITS.max_bytes}") + _CHUNK * (LIMITS.max_bytes // len(_CHUNK) - 1)
    while True:  # most of it at once, then a byte a second
        yield b"x"
        await asyncio.sleep(1.0)


@cache
def _largest() -> bytes:
    return os.urandom(1 << 20) * (LIMITS.max_bytes >> 20)


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(200_000_000), 9)


@cache
def _png(side: int, channels: int = 3) -> bytes:
    """A black picture, some thousand times smaller than its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(channels * side + 1)) for _ in range(side)) + squeeze.flush()
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, channels - 1, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@cache
def _webp(side: int) -> bytes:
    """A grey picture of a few kilobytes."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (side, side), "grey").save(out, "WEBP", method=0)
    return out.getvalue()


@cache
def _jpeg_bomb() -> bytes:
    """A small JPEG whose header says 65,000 by 65,000 pixels."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "JPEG")
    data = bytearray(out.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


FAULTS: dict[str, Fault] = {
    "endless": Fault("endless bodies of no stated length", "too_many_bytes", _endless),
    "endless-chunks": Fault("endless chunked bodies", "too_many_bytes", _endless_chunks),
    "endless-headers": Fault("endless headers", "connection", _endless_headers),
    "largest": Fault("bodies of exactly the byte cap", "not_an_image", _whole(_largest)),
    "drip": Fault("bodies of the byte cap that stall at their end", "timeout", _drip, timeout_s=3.0),
    "gzip-bomb": Fault("gzip bombs as content encoding", "not_an_image", _whole(_gzip_bomb, "Content-Encoding: gzip")),
    "png-bomb": Fault("PNG bombs of 400 million pixels", "too_many_pixels", _whole(lambda: _png(20_000, channels=1))),
    "png-at-cap": Fault("PNGs of nearly the pixel cap", "success", _whole(lambda: _png(7_000)), urls=8),
    "webp-at-cap": Fault("WebPs of nearly the pixel cap", "success", _whole(lambda: _webp(7_000)), urls=8),
    "jpeg-bomb": Fault("JPEG bombs of 4 billion pixels", "too_many_pixels", _whole(_jpeg_bomb)),
}


@dataclass(frozen=True)
class Result:
    """Of one worker."""

    peak_mib: float  # above idle
    idle_mib: float
    counts: dict[str, int]  # rows by reason, or "success"


def measured(fault: str, urls: int | None = None) -> Result:
    """Peak memory of a worker process that fetches so many pages of a server with this fault."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.data_faults"]
    with subprocess.Popen([*command, "serve", fault], env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            done = subprocess.run(
                [*command, "work", port, fault, str(urls or FAULTS[fault].urls)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
        finally:
            server.kill()
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def rows() -> list[Row]:
    """One row for each fault; a row holds only if every URL also ended with its reason."""
    table = []
    for name, fault in FAULTS.items():
        results = [measured(name) for _ in range(3)]
        ends = sum((Counter(result.counts) for result in results), Counter[str]())
        row = limit(
            f"peak memory of a worker: {fault.said}",
            "MiB",
            [result.peak_mib for result in results],
            round(CAP_MIB),
            "<=",
            note=f"above {results[0].idle_mib:.0f} MiB idle, {THREADS} threads; all rows: {', '.join(ends)}",
            limit_name="byte cap + pixel cap as RGB + 200 MiB",
        )
        right = set(ends) == {fault.outcome}
        table.append(row if right else Row(**{**vars(row), "holds": False}))
        print(f"  {row.figure}: {row.ours:.0f} MiB, {dict(ends)}", flush=True)
    return table


# -- the two processes


def _serve(fault: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
            if path == b"/small.png":
                small = _png(32)
                writer.write(_head(f"Content-Length: {len(small)}") + small)
            elif path.startswith(b"/fault"):
                async for part in FAULTS[fault].send():
                    writer.write(part)
                    await writer.drain()
            else:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()

    async def main() -> None:
        async for _ in _first(FAULTS[fault].send()):
            pass  # what is made only once, is made before anybody waits for it
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=256)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


async def _first(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield part
        return


def _resident_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _work(port: str, fault: str, urls: int) -> None:
    from components.data.engine import Shard
    from components.data.fetching import Fetcher
    from components.data.guard import Guard
    from components.data.takedown import Blocklist

    limits = LIMITS.model_copy(update={"timeout_s": FAULTS[fault].timeout_s})

    def fetched(paths: list[str]) -> list[str]:
        shard = Shard(
            "00000", range(len(paths)), [f"http://127.0.0.1:{port}{path}" for path in paths], ["x"] * len(paths),
            limits, Blocklist(),
        )  # fmt: skip
        fetcher = Fetcher(limits, Guard((f"127.0.0.1:{port}",)))
        shard.fetch(fetcher, THREADS)
        reasons = [reason or "success" for reason in shard.ledger()["reason"].to_pylist()]
        shard.close()
        fetcher.close()
        return reasons

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        assert fetched(["/small.png"]) == ["success"]
        idle = _resident_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        counts = Counter(fetched([f"/fault/{n}" for n in range(urls)]))
    result: dict[str, Any] = {"peak_mib": _resident_mib("VmHWM") - idle, "idle_mib": idle, "counts": dict(counts)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(sys.argv[2])
    else:
        _work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
