"""Which addresses a collector may speak to: names are resolved once, every answer is checked, one is pinned.

A URL list is written by strangers. Without these rules it could make the collector read services inside
the network that it runs in (server-side request forgery), also by a redirect or by a name whose answer
changes between the check and the connection. Sources: RFC 6890 and the IANA special-purpose registries,
RFC 4291 (address forms), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 6052 and 8215 (NAT64), RFC 5214 (ISATAP).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import idna

from components.contracts.errors import RecipeError
from components.contracts.records import CollectReason

if TYPE_CHECKING:
    from components.data.fetching import Fetch

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Said in full, though most are also covered by `is_global`: the tables of `ipaddress` differ between releases.
_REFUSED = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "2001::/23", "2001:db8::/32", "3fff::/20",
    )
]  # fmt: skip
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is given out to the public internet (RFC 3587)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_UNQUOTED = "/%:@!$&'()*+,;=~-._"  # what a path may say as it is, escapes included
_MOST_NAMES = 20_000  # that answers are kept of
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


class Refusal(Exception):
    """A fetch that ended without a picture: the reason for the ledger, and one line for people."""

    def __init__(
        self,
        reason: CollectReason,
        detail: str,
        http_status: int | None = None,
        *,
        opt_out: str | None = None,
        received: int | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.http_status = reason, detail, http_status
        self.opt_out = opt_out  # evidence, for ROBOTS_DISALLOWED and OPT_OUT
        self.received = received  # bytes of a body that came to an end
        self.final = final  # True where another attempt must not be made though the reason is transient
        self.attempts = 0
        self.fetch: Fetch | None = None  # its circumstances, where the fetcher was asked

    def bare(self) -> Refusal:
        """The same without traceback and causes, which would keep in memory what was received, as long as this is."""
        copy = Refusal(self.reason, self.detail, self.http_status)
        copy.__dict__.update(self.__dict__)
        return copy


@dataclass(frozen=True)
class Target:
    """A URL taken apart. ``host`` is in ASCII and without brackets, ``path`` is quoted and has the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme, host and port, as robots.txt and connections are kept by."""
        return f"{self.scheme}://{self.authority}"

    @property
    def url(self) -> str:
        """The whole URL, as it is asked for."""
        return self.origin + self.path

    @property
    def authority(self) -> str:
        """Host and port as the Host header says them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def target_of(url: str) -> Target:
    """The parts of an http or https URL; user names and fragments are left out.

    Raises:
        Refusal: another scheme, no host, or a host or port that cannot be.
    """
    try:
        parts = urlsplit(url.strip())
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
        if scheme in ("http", "https") and host:
            host = _host(host)
        path = quote(parts.path or "/", safe=_UNQUOTED)
        query = quote(parts.query, safe=_UNQUOTED + "?[]|") if parts.query else ""
    except ValueError as error:  # includes UnicodeError of idna and of lone surrogates
        raise Refusal(CollectReason.REFUSED_SCHEME, f"not a URL: {_ascii(str(error))}") from error
    if scheme not in ("http", "https") or not host:
        raise Refusal(
            CollectReason.REFUSED_SCHEME, f"scheme {_ascii(scheme[:20])!r} is not http or https, or there is no host"
        )
    if not path.startswith("/"):
        path = f"/{path}"
    return Target(scheme, host, port or (443 if scheme == "https" else 80), f"{path}?{query}" if query else path)


def _host(name: str) -> str:
    """A host as it is asked for: an IPv6 address in its shortest form, or a name in ASCII (UTS 46)."""
    if ":" in name:
        if "%" in name:
            raise ValueError("an address with a zone is of this machine's own networks")
        return str(ipaddress.IPv6Address(name))
    if not name.isascii():
        name = idna.encode(name, uts46=True).decode("ascii")
    name = name.lower().removesuffix(".")
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is no host name")
    return name


def _ascii(text: str) -> str:
    return text[:80].encode("ascii", "backslashreplace").decode("ascii")


def is_public(address: Address) -> bool:
    """True if the address, and any IPv4 address inside it, belongs to the public unicast internet.

    Of IPv6 that is 2000::/3 without its special ranges; of the forms outside it only those that lead to a public
    IPv4 address (mapped, well-known NAT64). The prefix of a NAT64 gateway of one's own cannot be known here.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or not all(is_public(inner) for inner in _embedded(address)):
            return False
        if address in _MAPPED or address in _NAT64:
            return True
        if address not in _GLOBAL_UNICAST:
            return False
    if any(address.version == net.version and address in net for net in _REFUSED):
        return False
    # 6to4 is "not global" in the registry; what it leads to was judged above
    relayed = address.version == 6 and address in _SIX_TO_FOUR
    return (address.is_global or relayed) and not (
        address.is_multicast or address.is_reserved or address.is_loopback or address.is_unspecified
    )


def is_private_literal(host: str) -> bool:
    """True if the host is an address, in any spelling that the resolver knows (``0x7f.1``), and not public."""
    try:
        found: list[Any] = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False  # a name, which only the resolver can tell
    return not all(is_public(ipaddress.ip_address(entry[4][0])) for entry in found)


def _embedded(address: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address of a transition form leads to, or is tunnelled by."""
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _MAPPED or address in _NAT64:
        yield low
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo  # the server and the client
    if (int(address) >> 32) & 0xFDFFFFFF == 0x00005EFE:  # ISATAP: 0000:5efe or 0200:5efe before it
        yield low


@dataclass
class Guard:
    """Resolves and checks. One object serves one task: answers are kept for its life, and are what is used.

    Args:
        allow_hosts: ``host:port`` pairs whose address is not checked, as the recipe says them.

    Raises:
        RecipeError: a pair that is not of this form.
    """

    allow_hosts: Iterable[str] = ()
    _allowed: frozenset[tuple[str, int]] = frozenset()
    _asked: dict[tuple[str, int], Future[list[str]]] = field(default_factory=dict)
    _checked: dict[tuple[str, int], list[str] | str] = field(default_factory=dict)  # addresses, or why they are refused
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._allowed = frozenset(_pair(text) for text in self.allow_hosts)

    def allows(self, target: Target) -> bool:
        """True if the recipe exempts this host and port from the address rule."""
        return (target.host, target.port) in self._allowed

    def addresses(self, target: Target, timeout_s: float) -> list[str]:
        """Addresses that the target may be reached at, each checked.

        Raises:
            Refusal: ``REFUSED_ADDRESS`` if any answer is not public, ``CONNECTION`` if the name has no
                address, ``TIMEOUT`` if there is no answer within ``timeout_s`` seconds.
        """
        key = (target.host, target.port)
        checked = self._checked.get(key)
        if checked is None:
            found = self._resolved(key, timeout_s)
            private = [] if self.allows(target) else [a for a in found if not is_public(ipaddress.ip_address(a))]
            # the first judgement stays, so that what was checked is what is used
            verdict = f"{target.authority} leads to {private[0]}, which is not a public address" if private else found
            checked = self._checked.setdefault(key, verdict)
        if isinstance(checked, str):
            raise Refusal(CollectReason.REFUSED_ADDRESS, checked)
        return checked

    def _resolved(self, key: tuple[str, int], timeout_s: float) -> list[str]:
        """Addresses of a host; the system's resolver runs in a thread, because it knows no deadline."""
        host, port = key
        with self._lock:
            if len(self._asked) >= _MOST_NAMES:  # asked anew they are checked anew
                self._asked.clear()
                self._checked.clear()
            answer = self._asked.get(key)
            if answer is None:
                answer = self._asked[key] = Future()
                Thread(target=_ask, args=(answer, host, port), daemon=True).start()
        try:
            return answer.result(timeout=max(timeout_s, 0.0))
        except FutureTimeout as error:  # the thread goes on: who asks later finds its answer
            raise Refusal(CollectReason.TIMEOUT, f"the name {host} was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            # "no such name" is an answer and is kept; anything else may pass, and is asked again
            known = isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME
            with self._lock:
                if not known and self._asked.get(key) is answer:
                    del self._asked[key]
            raise Refusal(CollectReason.CONNECTION, f"the name {host} has no address", final=known) from error


def _ask(answer: Future[list[str]], host: str, port: int) -> None:
    try:
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answer.set_result(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
    except (OSError, UnicodeError) as error:
        answer.set_exception(error)


def _pair(text: str) -> tuple[str, int]:
    host, colon, port = text.strip().rpartition(":")
    try:
        if not colon or not 0 < int(port) < 65536:
            raise ValueError(text)
        return _host(host.strip("[]")), int(port)
    except ValueError as error:
        raise RecipeError(
            f"collect.allow_hosts has {text!r}",
            expected="host:port, such as 127.0.0.1:8765 or [::1]:8765",
            remedy="name the host and the port",
        ) from error
