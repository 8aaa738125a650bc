"""What an origin (scheme, host and port) says of itself, asked once a task: robots.txt and tdmrep.json."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin

from components.contracts.recipe import Collect
from components.contracts.records import TRANSIENT, CollectReason
from components.data.exchange import Reply
from components.data.guard import Refusal, Target, target_of
from components.data.hosts import Hosts
from components.data.manners import Robots, Rules, agent_token, tdm_rules

RETRIED_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
OVERLOADED = frozenset({429, 503})  # not an answer, but a host that cannot give one now
REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FILE_BYTES = 512 * 1024  # RFC 9309 2.5: at least 500 KiB must be read
_REDIRECTS_OF_ROBOTS = 5  # RFC 9309 2.3.1.2

_KEPT_BYTES = 2 << 20  # of all files together; as rules they take up to sixty times that
_LEAST = 1 << 9  # that an origin counts for, so that there are at most 4096
_LOCKS = 256

Ask = Callable[[Target, int, bool], Reply]  # a request at its host's turn: target, most bytes, cut off what is more


@dataclass
class Origin:
    """The rules of one origin."""

    robots: Robots | None  # None: not asked, as the recipe says
    reserved: Rules | None  # paths that tdmrep.json reserves; None: not asked
    size: int = _LEAST  # bytes of the files, for the memory of all


class Origins:
    """Rules by origin. The first thread asks, the others wait for its answer. The least used are forgotten, and asked
    for again, where there are more than :data:`_KEPT_BYTES` of them.

    Args:
        limits: the recipe's ``collect`` section.
        hosts: learns of delays and of origins that do not answer.
        ask: makes a request.
    """

    def __init__(self, limits: Collect, hosts: Hosts, ask: Ask) -> None:
        self._limits, self._hosts, self._ask = limits, hosts, ask
        self._agent = agent_token(limits.user_agent)
        self._known: OrderedDict[str, Origin] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self._asking = [threading.Lock() for _ in range(_LOCKS)]  # by origin; that some share one does no harm

    def of(self, target: Target, first: bool = True) -> Origin:
        """The rules of the target's origin.

        Args:
            first: this is a URL's first attempt, which an origin that was given up is not asked for.

        Raises:
            Refusal: it cannot be reached; a dead host is said to be dead, not forbidden.
        """
        known = self._recall(target)
        if known is not None:
            if first:
                self._hosts.check(target)
            return known
        with self._asking[hash(target.origin) % _LOCKS]:
            known = self._recall(target)
            if known is None:
                self._hosts.check(target)  # the thread before this one may have given it up
                known = self._asked(target)
                self._keep(target, known)
        return known

    def _recall(self, target: Target) -> Origin | None:
        with self._lock:
            known = self._known.get(target.origin)
            if known is not None:
                self._known.move_to_end(target.origin)
            return known

    def _keep(self, target: Target, origin: Origin) -> None:
        with self._lock:
            self._known[target.origin] = origin
            self._size += origin.size
            while self._size > _KEPT_BYTES and len(self._known) > 1:
                self._size -= self._known.popitem(last=False)[1].size

    def _asked(self, target: Target) -> Origin:
        robots = None
        if self._limits.respect_robots:
            try:
                robots = self._robots(target)
            except Refusal as refusal:
                self._hosts.give_up(target, refusal)
                refusal.final = True
                raise
        wanted = self._limits.respect_opt_out and (robots is None or robots.state != "closed")
        reserved = self._reserved(target) if wanted else None
        return Origin(robots, reserved, _LEAST + (robots.size if robots else 0) + (reserved.size if reserved else 0))

    def _robots(self, target: Target) -> Robots:
        """RFC 9309 2.3.1: none (4xx, too many redirects) allows all; a server that fails (5xx) disallows all."""
        for attempt in range(1, self._limits.max_attempts + 1):
            try:
                reply = self._followed(f"{target.origin}/robots.txt")
                if reply is None or (400 <= reply.status < 500 and reply.status != 429):
                    return Robots(None, self._agent)
                if 200 <= reply.status < 300:
                    return Robots(reply.body.decode("utf-8", "replace").lstrip("\ufeff"), self._agent)
                problem = f"robots.txt: HTTP status {reply.status}"
            except Refusal as refusal:
                if refusal.reason in TRANSIENT:
                    if attempt == self._limits.max_attempts or refusal.final:
                        raise Refusal(refusal.reason, f"robots.txt: {refusal.detail}", refusal.http_status) from refusal
                elif refusal.reason is CollectReason.TRUNCATED:
                    problem = "robots.txt: came incomplete"
                elif refusal.reason is CollectReason.TLS:
                    raise
                else:  # a redirect to what the guard refuses, a compressed file: it is there, and cannot be had
                    return Robots(None, self._agent, closed=f"robots.txt: {refusal.detail}")
            if attempt < self._limits.max_attempts:
                time.sleep(backoff_s(attempt))
        return Robots(None, self._agent, closed=f"{problem}, so the whole site is taken as disallowed")

    def _reserved(self, target: Target) -> Rules:
        """TDMRep 6.1; whatever prevents the file from being read reserves nothing."""
        try:
            reply = self._followed(f"{target.origin}/.well-known/tdmrep.json")
        except Refusal:
            return Rules()
        found = reply is not None and 200 <= reply.status < 300
        return tdm_rules(reply.body.decode("utf-8", "replace")) if reply is not None and found else Rules()

    def _followed(self, url: str) -> Reply | None:
        """The answer after redirects; None where there are too many."""
        for _ in range(_REDIRECTS_OF_ROBOTS + 1):
            reply = self._ask(target_of(url), _FILE_BYTES, True)
            location = reply.headers.get("Location")
            if reply.status not in REDIRECTS or not location:
                return reply
            url = joined(url, location)
        return None


def joined(url: str, location: str) -> str:
    """Where a redirect leads.

    Raises:
        Refusal: to something that is no URL.
    """
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Refusal(CollectReason.REFUSED_SCHEME, "redirected to what is no URL") from error


def backoff_s(attempt: int) -> float:
    """Seconds to wait after the attempt of this number: exponential with full jitter, so that a struggling host is
    not met in step (M. Brooker, "Exponential Backoff and Jitter", 2015)."""
    return random.uniform(0.0, min(10.0, 0.25 * 2**attempt))
