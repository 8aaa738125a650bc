"""One guarded HTTP client: what may be asked, how long it may take, and how much may come.

The client is given to ``urllib.request.install_opener`` (see :mod:`components.data.engine`), so that the
engine's own download code goes through it. Every request: http and https only, address checked and pinned,
checked again at every redirect, one deadline over name, connection, headers and body, a byte cap while the
body streams in, robots.txt and X-Robots-Tag honoured. Connections are kept alive, a few a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import ssl
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urljoin

from components.contracts.recipe import Collect
from components.contracts.records import TRANSIENT, CollectReason
from components.data.connections import PinnedConnection
from components.data.guard import Guard, Refusal, Target, target_of
from components.data.manners import Robots, agent_token, opt_out_evidence

_CHUNK = 1 << 16
_ROBOTS_BYTES = 512 * 1024  # RFC 9309: at least 500 KiB must be read
_KEPT_CONNECTIONS = 4  # a thread
_RETRIED_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Answer:
    """A body that came whole, and what the ledger says of it."""

    body: bytes
    http_status: int
    attempts: int
    opt_out: str | None  # evidence that was seen and, by the recipe, not followed

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the body."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass
class _Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass
class Fetcher:
    """Fetches pictures under the recipe's limits; one object serves all threads of one task.

    Args:
        limits: the recipe's ``collect`` section.
        guard: the address rules.
    """

    limits: Collect
    guard: Guard
    _robots: dict[str, Robots | Refusal] = field(default_factory=dict)
    _robots_locks: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kept: threading.local = field(default_factory=threading.local)
    _tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def fetch(self, url: str) -> Answer:
        """The body at ``url``, asked for up to ``max_attempts`` times while the failure is transient.

        Raises:
            Refusal: with its reason; ``attempts`` is set on it.
        """
        for attempt in range(1, self.limits.max_attempts + 1):
            try:
                answer = self._once(url)
                return Answer(answer.body, answer.status, attempt, self._evidence(answer))
            except Refusal as refusal:
                refusal.attempts = attempt
                if refusal.reason not in TRANSIENT or refusal.final or attempt == self.limits.max_attempts:
                    raise
                # exponential backoff with jitter, so that a struggling host is not met in step
                pause = 0.1 * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                time.sleep(max(pause, min(refusal.retry_after or 0.0, 5.0)))
        raise AssertionError("max_attempts is at least 1")

    def _once(self, url: str) -> _Reply:
        deadline = time.monotonic() + self.limits.timeout_s
        for _ in range(self.limits.max_redirects + 1):
            target = target_of(url)
            self.guard.addresses(target, deadline - time.monotonic())  # before robots.txt is asked of it
            if self.limits.respect_robots:
                asked = time.monotonic()
                rule = self._robots_of(target).forbids(agent_token(self.limits.user_agent), url)
                deadline += time.monotonic() - asked  # robots.txt is not this picture's time
                if rule:
                    refusal = Refusal(CollectReason.ROBOTS_DISALLOWED, "robots.txt disallows this path")
                    refusal.opt_out = rule
                    raise refusal
            reply = self._ask(target, deadline, self.limits.max_bytes)
            location = reply.headers.get("Location")
            if reply.status not in _REDIRECTS or not location:
                return self._accepted(reply)
            url = urljoin(url, location)
        raise Refusal(
            CollectReason.TOO_MANY_REDIRECTS, f"more than {self.limits.max_redirects} redirects", reply.status
        )

    def _accepted(self, reply: _Reply) -> _Reply:
        status = reply.status
        if status in (404, 410):
            raise Refusal(CollectReason.HTTP_404, f"HTTP status {status}", status)
        if not 200 <= status < 300:
            refusal = Refusal(CollectReason.HTTP_ERROR, f"HTTP status {status}", status)
            refusal.final = status not in _RETRIED_STATUSES
            with contextlib.suppress(ValueError):
                refusal.retry_after = float(reply.headers.get("Retry-After") or 0)
            raise refusal
        evidence = self._evidence(reply)
        if evidence and self.limits.respect_opt_out:
            refusal = Refusal(CollectReason.OPT_OUT, "the answer's X-Robots-Tag forbids this use", status)
            refusal.opt_out = evidence
            raise refusal
        return reply

    def _evidence(self, reply: _Reply) -> str | None:
        values = reply.headers.get_all("X-Robots-Tag", [])
        found = opt_out_evidence(values, agent_token(self.limits.user_agent))
        return None if found is None else f"X-Robots-Tag: {found}"

    def _robots_of(self, target: Target) -> Robots:
        with self._lock:
            lock = self._robots_locks.setdefault(target.origin, threading.Lock())
        with lock:  # the first thread asks, the others wait for its answer
            if target.origin not in self._robots:
                try:
                    self._robots[target.origin] = self._read_robots(target)
                except Refusal as refusal:  # a dead host is waited for once, not once for each of its URLs
                    self._robots[target.origin] = refusal
            found = self._robots[target.origin]
        if isinstance(found, Robots):
            return found
        again = Refusal(found.reason, f"robots.txt: {found.detail}", found.http_status)
        again.final = True
        raise again

    def _read_robots(self, target: Target) -> Robots:
        """RFC 9309 2.3.1: none (4xx) allows all, a failing server (5xx) disallows all."""
        url = f"{target.origin}/robots.txt"
        for attempt in range(1, self.limits.max_attempts + 1):
            deadline = time.monotonic() + self.limits.timeout_s
            try:
                here = url
                for _ in range(6):
                    reply = self._ask(target_of(here), deadline, _ROBOTS_BYTES, cut=True)
                    if reply.status not in _REDIRECTS or not reply.headers.get("Location"):
                        break
                    here = urljoin(here, str(reply.headers["Location"]))
                if 200 <= reply.status < 300:
                    return Robots(reply.body.decode("utf-8", "replace").lstrip("\ufeff"))
                if reply.status < 500 and reply.status != 429:
                    return Robots(None)
                problem = f"robots.txt: HTTP status {reply.status}, so the whole site is taken as disallowed"
            except Refusal as refusal:
                if refusal.reason is CollectReason.TRUNCATED:
                    problem = "robots.txt: came incomplete, so the whole site is taken as disallowed"
                elif attempt == self.limits.max_attempts or refusal.reason not in TRANSIENT:
                    raise  # a dead host is said to be dead, not forbidden
            time.sleep(0.1 * 2 ** (attempt - 1))
        return Robots(None, closed=problem)

    # -- one request over one pinned connection

    def _ask(self, target: Target, deadline: float, max_bytes: int, cut: bool = False) -> _Reply:
        kept = self._connections()
        connection = kept.pop(target.origin, None)
        if connection is not None:
            with contextlib.suppress(_Stale):
                return self._exchange(connection, target, deadline, max_bytes, cut, reused=True)
        addresses = self.guard.addresses(target, deadline - time.monotonic())
        connection = PinnedConnection(target, addresses, self._tls if target.scheme == "https" else None)
        return self._exchange(connection, target, deadline, max_bytes, cut, reused=False)

    def _exchange(
        self, connection: PinnedConnection, target: Target, deadline: float, max_bytes: int, cut: bool, reused: bool
    ) -> _Reply:
        connection.deadline = deadline
        response, keep = None, False
        try:
            headers = {"User-Agent": self.limits.user_agent, "Accept": "image/*,*/*;q=0.5",
                       "Accept-Encoding": "identity", "Host": target.authority}  # fmt: skip
            try:
                connection.request("GET", target.path, headers=headers)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
                if reused:  # the server had closed the kept connection: nothing was answered
                    raise _Stale from error
                raise
            body = _read_body(response, max_bytes, cut)
            keep = not response.will_close and (response.isclosed() or response.length == 0)
            return _Reply(response.status, response.headers, body)
        except TimeoutError as error:
            raise Refusal(CollectReason.TIMEOUT, f"no complete answer within {self.limits.timeout_s:g} s") from error
        except ssl.SSLError as error:
            raise Refusal(CollectReason.CONNECTION, f"TLS: {error.reason or type(error).__name__}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Refusal(CollectReason.CONNECTION, _said(error)) from error
        finally:
            if response is not None:
                response.close()
            kept = self._connections()
            if keep and len(kept) < _KEPT_CONNECTIONS:
                kept[target.origin] = connection
            else:
                connection.close()

    def _connections(self) -> dict[str, PinnedConnection]:
        if not hasattr(self._kept, "by_origin"):
            self._kept.by_origin = {}
        return self._kept.by_origin  # type: ignore[no-any-return]


def _read_body(response: http.client.HTTPResponse, max_bytes: int, cut: bool) -> bytes:
    """The body, checked for length. ``cut``: more than ``max_bytes`` is cut off instead of refused."""
    status = response.status
    if status >= 300:  # only its end matters, so that the connection can be kept
        max_bytes, cut = _CHUNK, True
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    announced = response.length  # None for chunked answers and for those that end with the connection
    if announced is not None and announced > max_bytes and not cut:
        raise Refusal(
            CollectReason.TOO_MANY_BYTES, f"{announced} bytes announced, at most {max_bytes} are taken", status
        )
    parts, received = [], 0
    ended_early = False
    while received <= max_bytes:
        try:
            part = response.read1(min(_CHUNK, max_bytes + 1 - received))
        except (http.client.IncompleteRead, ConnectionResetError):
            ended_early = True
            break
        if not part:
            break
        parts.append(part)
        received += len(part)
    if received > max_bytes:
        if not cut:
            raise Refusal(CollectReason.TOO_MANY_BYTES, f"more than {max_bytes} bytes", status)
        return b"".join(parts)[:max_bytes]
    if status >= 300:
        return b""
    if ended_early or (announced is not None and received < announced):
        refusal = Refusal(
            CollectReason.TRUNCATED, f"{received} bytes came, {announced or 'more'} were announced", status
        )
        refusal.received = received
        raise refusal
    if encoding not in ("", "identity"):  # never unpacked: a small answer could unfold into a huge one
        refusal = Refusal(CollectReason.NOT_AN_IMAGE, f"content encoding {encoding[:20]!r} was not asked for", status)
        refusal.received = received
        raise refusal
    return b"".join(parts)


def _said(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError | http.client.RemoteDisconnected | BrokenPipeError):
        return "the server closed the connection without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"not an HTTP answer ({type(error).__name__})"
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'network error'}"[:120]


class _Stale(Exception):
    """A kept connection turned out to be closed."""
