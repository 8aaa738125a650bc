"""Turns at each host: how many requests at once, how far apart, when to pause, and when to give a host up.

One object serves all threads of one task. Tasks run in other processes and perhaps on other machines and share
nothing, so each takes its share of what the recipe allows: ``per_host // tasks`` requests at once, at least one,
and ``tasks`` times the delay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, Semaphore

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data.guard import Refusal, Target

GIVE_UP_AFTER = 8  # URLs of an origin in a row that ended without an answer
MOST_HOSTS = 20_000  # that are remembered though nothing of them matters any more
PROBE_S = 30.0  # after this time one more URL of an origin that was given up is tried


@dataclass
class _Host:
    places: Semaphore
    delay: float
    lock: Lock = field(default_factory=Lock)
    latest: float = -math.inf  # when the latest request starts that has its time, monotonic seconds
    closed_until: float = -math.inf  # the host asked for a pause
    users: int = 0  # threads that wait or ask

    def idle(self, now: float) -> bool:
        """True if a new one would be the same."""
        return self.users == 0 and self.closed_until < now and self.latest + self.delay < now


@dataclass
class _Origin:
    failures: int = 0  # in a row
    given_up: Refusal | None = None
    probe_at: float = math.inf


class Hosts:
    """The gate before every request of one task.

    Args:
        limits: the recipe's ``collect`` section.
        tasks: tasks in flight, this one included, of which each keeps to its share.
    """

    def __init__(self, limits: Collect, tasks: int = 1) -> None:
        self._limits, self._tasks = limits, tasks
        self._hosts: dict[str, _Host] = {}
        self._origins: dict[str, _Origin] = {}
        self._lock = Lock()

    @contextmanager
    def turn(self, target: Target) -> Iterator[None]:
        """Holds one of the host's places while the request is made, once it may start.

        Raises:
            Refusal: ``HTTP_ERROR``, not to be tried again, where the host asked for a longer pause than
                ``max_retry_after_s``.
        """
        host = self._host(target)
        with host.places:
            reserved = False
            while not reserved or host.closed_until > time.monotonic():  # a pause may begin while it is waited
                reserved, wait = self._next_start(host)
                if wait > 0:  # sleep(0) would hand the interpreter over
                    time.sleep(wait)
            yield

    def _next_start(self, host: _Host) -> tuple[bool, float]:
        """Whether a time to start is reserved, and seconds until then; if not, until the host's pause ends."""
        with host.lock:
            now = time.monotonic()
            pause = host.closed_until - now
            if pause > self._limits.max_retry_after_s:
                raise too_long(pause)
            if pause > 0:
                return False, pause
            host.latest = max(now, host.latest + host.delay)
            return True, host.latest - now

    def slow_down(self, target: Target, delay_s: float) -> None:
        """Keep at least this many seconds between requests to the host, over all tasks.

        Raises:
            Refusal: ``CRAWL_DELAY`` if that is more than ``max_crawl_delay_s``.
        """
        if delay_s > self._limits.max_crawl_delay_s:
            raise Refusal(
                CollectReason.CRAWL_DELAY,
                f"robots.txt asks for {delay_s:g} s between requests, more than {self._limits.max_crawl_delay_s:g} s",
            )
        host = self._host(target)
        host.delay = max(host.delay, delay_s * self._tasks)

    def pause(self, target: Target, seconds: float) -> None:
        """No request to the host for so long, whichever thread would make it."""
        host = self._host(target)
        with host.lock:
            host.closed_until = max(host.closed_until, time.monotonic() + seconds)

    def _host(self, target: Target, users: int = 0) -> _Host:
        # http and https of a name are one host; another port is taken for another service
        name = target.host if target.port in (80, 443) else f"{target.host}:{target.port}"
        with self._lock:
            host = self._hosts.get(name)
            if host is None:
                if len(self._hosts) >= MOST_HOSTS:
                    now = time.monotonic()
                    self._hosts = {name: known for name, known in self._hosts.items() if not known.idle(now)}
                places = Semaphore(max(1, self._limits.per_host // self._tasks))
                host = self._hosts[name] = _Host(places, self._limits.crawl_delay_s * self._tasks)
            host.users += users
            return host

    # -- origins that do not answer

    def check(self, target: Target) -> None:
        """To be asked before a URL's first request.

        Raises:
            Refusal: the origin was given up, and it is not yet time for another try; not to be tried again.
        """
        with self._lock:
            origin = self._origins.get(target.origin)
            if origin is None or origin.given_up is None:
                return
            if time.monotonic() >= origin.probe_at:
                origin.probe_at = time.monotonic() + PROBE_S  # this one is the probe, the others wait for it
                return
            why = origin.given_up
        detail = f"not asked, as other URLs of this host failed: {why.detail}"
        raise Refusal(why.reason, detail, why.http_status, final=True)

    def answered(self, target: Target) -> None:
        """The origin gave an answer, of whatever status."""
        with self._lock:
            self._origins.pop(target.origin, None)

    def failed(self, target: Target, why: Refusal) -> None:
        """A URL of the origin ended without an answer, all attempts made."""
        with self._lock:
            origin = self._origins.get(target.origin) or self._remember(target, _Origin())
            origin.failures += 1
            if origin.failures >= GIVE_UP_AFTER:
                origin.given_up, origin.probe_at = why.bare(), time.monotonic() + PROBE_S

    def give_up(self, target: Target, why: Refusal) -> None:
        """The origin is not worth another URL: it cannot be reached, or cannot be trusted."""
        with self._lock:
            probe_at = math.inf if why.reason is CollectReason.TLS else time.monotonic() + PROBE_S
            self._remember(target, _Origin(GIVE_UP_AFTER, why.bare(), probe_at))

    def _remember(self, target: Target, origin: _Origin) -> _Origin:
        if len(self._origins) >= MOST_HOSTS:
            now = time.monotonic()
            self._origins = {name: known for name, known in self._origins.items() if now < known.probe_at < math.inf}
        self._origins[target.origin] = origin
        return origin


def too_long(seconds: float, http_status: int | None = None) -> Refusal:
    """The refusal of a pause that is not waited for."""
    detail = f"the host asks for a pause of {math.ceil(seconds)} s"
    return Refusal(CollectReason.HTTP_ERROR, detail, http_status, final=True)
