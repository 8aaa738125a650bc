"""A website on the loopback interface: the embedded world with the web's faults, or a parquet file's
pictures.

    python -m components.data.site --world --pictures 3000 --urls urls.parquet --truth truth.parquet
    python -m components.data.site --parquet pictures.parquet --caption-column caption --urls urls.parquet

The server answers HTTP/1.1 with keep-alive, one thread a connection. It does what its pages say, faults
included; what it knows of them is the truth that the pipeline is measured against.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import socket
import socketserver
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from components.contracts.errors import AtelierError, InputError, RuntimeUnavailable
from components.data.site_pages import Page, Pages

_CHUNK = 65536
_DRIPS_PER_SECOND = 20


class Site:
    """A running website of one or several sources of pages.

    ``with Site(pages, port=8765) as site: ... site.base_url``; ``port=0`` takes a free one. Sources can be
    added while it runs. Not only loopback addresses can be bound, but the pages are made for tests.

    Raises ``RuntimeUnavailable`` where the port cannot be had.
    """

    def __init__(self, *pages: Pages, host: str = "127.0.0.1", port: int = 0) -> None:
        self._pages: dict[str, Pages] = {}
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        try:
            self._server = _Server((host, port), _Connection)
        except OSError as error:
            raise RuntimeUnavailable(
                f"The website cannot listen on {host}:{port}: {error.strerror or error}",
                expected="a free port on this machine",
                remedy="stop what uses the port, or choose another one",
            ) from error
        self._server.site = self
        self.host = host
        self.port = int(self._server.server_address[1])
        for source in pages:
            self.add(source)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="site", daemon=True
        )
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def add(self, pages: Pages) -> None:
        """Serve another source too; raises ``InputError`` where its prefix is taken."""
        with self._lock:
            if pages.prefix in self._pages:
                raise InputError(
                    f"The website already has pages under /{pages.prefix}/",
                    expected="another prefix for every source of pages",
                    remedy="build the new pages with a prefix of their own",
                )
            self._pages[pages.prefix] = pages

    def list_rows(self) -> list[dict[str, Any]]:
        """The URL lists of all sources, in the order in which they were added."""
        return [row for pages in self._pages.values() for row in pages.list_rows(self.base_url)]

    def requests(self) -> dict[str, int]:
        """How often each path was asked for since the start or the last :meth:`reset`."""
        with self._lock:
            return dict(self._asked)

    def reset(self) -> None:
        """Forget all requests: what heals on retry is broken again."""
        with self._lock:
            self._asked.clear()

    def stop(self) -> None:
        """Stop answering and free the port; slow answers in progress are cut."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def answer(self, target: str) -> Page:
        """The page for a request target, as it is this time."""
        path = unquote(urlsplit(target).path)
        if path == "/robots.txt":
            return self._robots()
        with self._lock:
            self._asked[path] += 1
            number = self._asked[path]
            pages = self._pages.get(path.split("/")[1] if path.startswith("/") else "")
        page = pages.page(path) if pages is not None else None
        if page is None:
            return Page(b"not found\n", "text/plain", status=404)
        if number <= len(page.fail_first):
            return Page(b"try again\n", "text/plain", status=page.fail_first[number - 1])
        return page

    def wait(self, seconds: float) -> bool:
        """Pause an answer; True when the site is stopping."""
        return self._stopping.wait(seconds)

    def _robots(self) -> Page:
        closed = [path for pages in self._pages.values() for path in pages.disallowed()]
        lines = ["User-agent: *", *(f"Disallow: {path}" for path in closed), "Allow: /", ""]
        return Page("\n".join(lines).encode(), "text/plain; charset=utf-8")


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    site: Site

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):  # clients may leave at any time
            super().handle_error(request, client_address)


class _Connection(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    timeout = 60.0

    def handle(self) -> None:
        site = cast(_Server, self.server).site
        while not site.wait(0):
            request = self.rfile.readline(_CHUNK)
            parts = request.split()
            if len(parts) != 3:
                return
            headers = {}
            while (line := self.rfile.readline(_CHUNK)) not in (b"\r\n", b"\n", b""):
                name, _, value = line.partition(b":")
                headers[name.strip().lower()] = value.strip().lower()
            if parts[0] not in (b"GET", b"HEAD"):
                page = Page(b"only GET and HEAD\n", "text/plain", status=405)
            else:
                page = site.answer(parts[1].decode("latin-1"))
            if page.hang_up or site.wait(page.stall_s):
                return
            close = (
                headers.get(b"connection") == b"close"
                or parts[2] == b"HTTP/1.0"
                or (page.announced is not None and page.announced != len(page.body))
            )
            if not self._send(site, page, close, only_head=parts[0] == b"HEAD") or close:
                return

    def _send(self, site: Site, page: Page, close: bool, only_head: bool) -> bool:
        """True when the whole answer went out."""
        length = len(page.body) + page.zeros if page.announced is None else page.announced
        try:
            phrase = HTTPStatus(page.status).phrase
        except ValueError:
            phrase = ""
        lines = [f"HTTP/1.1 {page.status} {phrase}"]
        lines += [f"Content-Type: {page.content_type}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in page.headers]
        lines += ["Connection: close" if close else "Connection: keep-alive", "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        if only_head:
            self.request.sendall(head)
            return True
        if page.drip_s <= 0:
            self.request.sendall(head + page.body)
        else:
            self.request.sendall(head)
            steps = max(2, round(page.drip_s * _DRIPS_PER_SECOND))
            edges = [len(page.body) * i // steps for i in range(steps + 1)]
            for begin, end in itertools.pairwise(edges):
                if site.wait(page.drip_s / steps):
                    return False
                self.request.sendall(page.body[begin:end])
        left = page.zeros
        while left > 0:
            self.request.sendall(bytes(min(left, _CHUNK)))
            left -= _CHUNK
        return True

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        pages = _pages(options)
        with Site(pages, host=options.host, port=options.port) as site:
            if options.urls:
                pages.write_list(options.urls, site.base_url)
            if options.truth:
                pages.write_truth(options.truth, site.base_url)
            rows = len(pages.list_rows(site.base_url))
            print(json.dumps({"base_url": site.base_url, "prefix": pages.prefix, "rows": rows}), flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait(options.seconds)
    except AtelierError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _pages(options: argparse.Namespace) -> Any:
    if options.parquet:
        from components.data.site_parquet import ParquetSite

        if options.truth:
            raise InputError(
                "The truth is known only of the embedded world's website",
                expected="--truth together with --world",
                remedy="leave --truth out",
            )
        return ParquetSite(options.parquet, options.caption_column, prefix=options.prefix or "img", limit=options.limit)
    from components.data.site_world import NO_FAULTS, build_world_site
    from components.data.world import WorldSpec

    try:
        spec = WorldSpec(kinds=tuple(options.kinds)).without(*options.leave_out)
    except ValueError as error:
        raise InputError(str(error), remedy="see the words in components/data/scenes.py") from error
    return build_world_site(
        spec,
        options.pictures,
        options.seed,
        prefix=options.prefix or "a",
        size=options.size,
        feature=tuple(options.feature),
        fault_rates=NO_FAULTS if options.no_faults else None,
        drip_seconds=options.drip_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m components.data.site",
        description="Serve pictures over HTTP on this machine and write the list of their URLs and captions.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--world", action="store_true", help="the embedded world, with the faults of the web")
    source.add_argument("--parquet", metavar="FILE", help="the column 'bytes' of a parquet file")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--prefix", help="first part of every path (default: a, or img for a parquet file)")
    parser.add_argument("--urls", metavar="FILE", help="write the URL list here: .parquet, .csv or .jsonl")
    parser.add_argument("--seconds", type=float, help="stop after this time (default: when interrupted)")
    world = parser.add_argument_group("the embedded world")
    add = world.add_argument
    add("--pictures", type=int, default=3000, help="distinct originals (default: %(default)s)")
    add("--seed", type=int, default=0, help="equal seeds give equal sites (default: %(default)s)")
    add("--size", type=int, default=48, help="side in pixels, as served (default: %(default)s)")
    add("--kinds", nargs="+", default=["single"], help="of single, pair, count (default: single)")
    add("--leave-out", nargs="+", default=[], metavar="WORD", help="words that are never shown")
    add("--feature", nargs="+", default=[], metavar="WORD", help="one of these is always shown")
    add("--no-faults", action="store_true", help="only good pictures")
    add("--drip-seconds", type=float, default=30.0, help="how slow too slow is (default: %(default)s)")
    add("--truth", metavar="FILE", help="write what must become of every URL here")
    table = parser.add_argument_group("a parquet file")
    table.add_argument("--caption-column", default="caption", help="column of captions (default: %(default)s)")
    table.add_argument("--limit", type=int, help="only the first rows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
