"""The guarded fetcher: from a URL to a body, or to the reason why there is none.

Every request: http and https only, the host's turn awaited, address checked and pinned, checked again at every
redirect, one deadline over name, connection, headers and body, a byte cap while the body streams in, robots.txt and
opt-outs honoured. Transient failures are tried again, permanent ones are not.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from components.contracts.errors import RecipeError
from components.contracts.recipe import Collect
from components.contracts.records import TRANSIENT, CollectReason
from components.data.bodies import Lease, keep_few_arenas
from components.data.connections import tls_context
from components.data.exchange import Client, Reply
from components.data.guard import Guard, Refusal, Target, is_private_literal, target_of
from components.data.hosts import Hosts, too_long
from components.data.manners import (
    PARSER,
    agent_token,
    collector_user_agent,
    opt_out_evidence,
    retry_after_s,
    tdm_reserved,
)
from components.data.origins import OVERLOADED, REDIRECTS, RETRIED_STATUSES, Origin, Origins, backoff_s, joined


@dataclass(frozen=True)
class Fetch:
    """Circumstances of one row's fetch: the columns of ``FETCHES_SCHEMA`` but ``row``."""

    asked_at: datetime  # UTC, of the last attempt
    seconds: float  # of all attempts, pauses included
    address: str | None  # that the last answer came from
    final_url: str | None  # after redirects
    robots: str  # "none" | "allowed" | "disallowed" | "closed" | "not asked"
    parser: str


@dataclass(frozen=True)
class Answer:
    """A body that came whole, and what the ledger says of it. Its memory counts as long as this object is kept."""

    body: bytes
    http_status: int | None  # None where no web was asked
    attempts: int
    opt_out: str | None  # evidence that was seen and, by the recipe, not followed
    fetch: Fetch | None = None  # None where no web was asked
    lease: Lease = field(default_factory=Lease, compare=False, repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the body."""
        return hashlib.sha256(self.body).hexdigest()


@dataclass
class _Course:
    """What is known so far of one row."""

    began: float
    asked_at: datetime
    target: Target | None = None  # asked last
    answered: Target | None = None  # that gave the last answer
    address: str | None = None
    robots: str = "not asked"

    def fetch(self) -> Fetch:
        url = self.answered.url if self.answered else None
        return Fetch(self.asked_at, time.monotonic() - self.began, self.address, url, self.robots, PARSER)


class Fetcher:
    """Fetches pictures under the recipe's limits; one object serves all threads of one task.

    Args:
        limits: the recipe's ``collect`` section.
        guard: the address rules.
        tasks: tasks in flight; this one keeps to its share of what is allowed at each host.
        tls: gives the TLS context; loaded when the first https URL is asked for.

    Raises:
        RecipeError: the recipe's user agent or contact cannot be sent.
    """

    def __init__(
        self, limits: Collect, guard: Guard, tasks: int = 1, tls: Callable[[], ssl.SSLContext] = tls_context
    ) -> None:
        keep_few_arenas()
        self.limits, self.guard = limits, guard
        self._hosts = Hosts(limits, tasks)
        self._client = Client(guard, collector_user_agent(limits), limits.max_bytes, tls)
        self._agent = agent_token(limits.user_agent)
        self._origins = Origins(limits, self._hosts, self._at_turn)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._client.close()

    def fetch(self, url: str) -> Answer:
        """The body at ``url``, asked for up to ``max_attempts`` times while the failure is transient.

        Raises:
            Refusal: with its reason; ``attempts`` and ``fetch`` are set on it.
        """
        course = _Course(time.monotonic(), datetime.now(UTC))
        for attempt in range(1, self.limits.max_attempts + 1):
            course.asked_at = datetime.now(UTC)
            try:
                return self._once(url, course, attempt)
            except Refusal as refusal:
                failure = refusal.bare()
            last = attempt == self.limits.max_attempts or failure.final
            if failure.reason not in TRANSIENT or last:
                break
            time.sleep(backoff_s(attempt))
        failure.attempts = attempt
        failure.fetch = course.fetch()
        if course.target is not None and failure.reason is CollectReason.TLS:
            self._hosts.give_up(course.target, failure)
        elif course.target is not None and not failure.final and _unanswered(failure):
            self._hosts.failed(course.target, failure)
        raise failure

    def _once(self, url: str, course: _Course, attempt: int) -> Answer:
        left = self.limits.timeout_s  # for names, connections and answers; waiting for a turn is not the server's time
        for _ in range(self.limits.max_redirects + 1):
            target = course.target = target_of(url)
            began = time.monotonic()
            self.guard.addresses(target, left)
            left -= time.monotonic() - began
            origin = self._admitted(target, course, first=attempt == 1)
            with self._hosts.turn(target):
                began = time.monotonic()
                reply = self._answered(target, self._client.ask(target, left, self.limits.max_bytes))
                left -= time.monotonic() - began
            course.answered, course.address = target, reply.address
            location = reply.headers.get("Location")
            if reply.status not in REDIRECTS or not location:
                self._accept(reply.status)
                opt_out = self._opt_out(reply, target, origin)
                return Answer(reply.body, reply.status, attempt, opt_out, course.fetch(), reply.lease)
            url = joined(url, location)
        raise Refusal(
            CollectReason.TOO_MANY_REDIRECTS, f"more than {self.limits.max_redirects} redirects", reply.status
        )

    def _admitted(self, target: Target, course: _Course, first: bool) -> Origin:
        """The rules of the target's origin, which allow to ask for it."""
        course.robots = "not asked"
        if self.limits.contact is None and not self.guard.allows(target):
            raise Refusal(CollectReason.REFUSED_ADDRESS, f"{target.authority} is not asked without collect.contact")
        origin = self._origins.of(target, first)
        if origin.robots is not None:
            course.robots = origin.robots.state
            rule = origin.robots.forbids(target.url)
            if rule:
                course.robots = "closed" if origin.robots.state == "closed" else "disallowed"
                raise Refusal(CollectReason.ROBOTS_DISALLOWED, "robots.txt disallows this path", opt_out=rule)
            self._hosts.slow_down(target, origin.robots.delay_s)
        return origin

    def _at_turn(self, target: Target, max_bytes: int, cut: bool) -> Reply:
        """One request for a file about the origin itself."""
        self.guard.addresses(target, self.limits.timeout_s)
        with self._hosts.turn(target):
            return self._answered(target, self._client.ask(target, self.limits.timeout_s, max_bytes, cut))

    def _answered(self, target: Target, reply: Reply) -> Reply:
        """The reply, after the gate has learned of it."""
        if reply.status not in OVERLOADED:
            self._hosts.answered(target)
            return reply
        pause = retry_after_s(reply.headers.get("Retry-After"), datetime.now(UTC))
        if pause is not None:
            self._hosts.pause(target, pause)
            if pause > self.limits.max_retry_after_s:
                raise too_long(pause, reply.status)
        return reply

    def _accept(self, status: int) -> None:
        if status in (404, 410):
            raise Refusal(CollectReason.HTTP_404, f"HTTP status {status}", status)
        if not 200 <= status < 300:
            final = status not in RETRIED_STATUSES
            raise Refusal(CollectReason.HTTP_ERROR, f"HTTP status {status}", status, final=final)

    def _opt_out(self, reply: Reply, target: Target, origin: Origin) -> str | None:
        """Evidence of an opt-out that, by the recipe, is not followed.

        Raises:
            Refusal: ``OPT_OUT``, where it is followed.
        """
        found = []
        if said := opt_out_evidence(reply.headers.get_all("X-Robots-Tag", []), self._agent):
            found.append(f"X-Robots-Tag: {said}")
        reserved = tdm_reserved(reply.headers.get_all("tdm-reservation", []))
        if reserved:
            policy = reply.headers.get("tdm-policy")
            found.append("tdm-reservation: 1" + (f"; tdm-policy: {policy.strip()[:500]}" if policy else ""))
        elif reserved is None and origin.reserved and (line := origin.reserved.forbids(target.url)):
            found.append(f"tdmrep.json: {line.partition(':')[2].strip()}: tdm-reservation 1")  # headers come before it
        if not found:
            return None
        evidence = " | ".join(found)
        if self.limits.respect_opt_out:
            detail = f"the site opts out: {found[0][:120]}"
            raise Refusal(CollectReason.OPT_OUT, detail, reply.status, opt_out=evidence, received=len(reply.body))
        return evidence


def require_contact(limits: Collect, urls: Iterable[str | None]) -> None:
    """Make sure that owners of the sites asked can reach whoever collects.

    Args:
        limits: ``allow_hosts`` among them: hosts that belong to whoever collects, and need no contact.
        urls: of the list; those that the guard would refuse by their form need none either.

    Raises:
        RecipeError: ``collect.contact`` is not set and some host needs it, or the user agent cannot be sent.
    """
    collector_user_agent(limits)
    guard = Guard(limits.allow_hosts)
    if limits.contact is not None:
        return
    for start in sorted({"/".join(url.split("/", 3)[:3]) for url in urls if url}):
        try:
            target = target_of(start)
        except Refusal:
            continue  # will be refused as a row, with its reason
        if not guard.allows(target) and not is_private_literal(target.host):
            raise RecipeError(
                f"collect.contact is not set, and the list has URLs of {target.authority}",
                expected="a URL or e-mail address by which site owners can reach you; it goes into the user agent",
                remedy="--set collect.contact=https://example.org/our-collector (or an e-mail address)",
            )


def _unanswered(refusal: Refusal) -> bool:
    return refusal.reason in (CollectReason.TIMEOUT, CollectReason.CONNECTION) or refusal.http_status in OVERLOADED
