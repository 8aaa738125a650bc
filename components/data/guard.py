"""Which addresses a collector may speak to: names are resolved once, every answer is checked, one is pinned.

A URL list is written by strangers. Without these rules it could make the collector read services inside
the network that it runs in (server-side request forgery), also by a redirect or by a name whose answer
changes between the check and the connection. Sources: RFC 6890 and the IANA special-purpose registries,
RFC 3056 (6to4), RFC 4380 (Teredo), RFC 6052 and 8215 (NAT64), RFC 5214 (ISATAP).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any
from urllib.parse import quote, urlsplit

from components.contracts.records import CollectReason

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Said in full, though most are also covered by `is_global`: the tables of `ipaddress` differ between releases.
_REFUSED = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16",
        "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    )
]  # fmt: skip
_UNQUOTED = "/%:@!$&'()*+,;=~-._"  # what a path may say as it is, escapes included
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Refusal(Exception):
    """A fetch that ended without a picture: the reason for the ledger, and one line for people."""

    def __init__(self, reason: CollectReason, detail: str, http_status: int | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.http_status = reason, detail, http_status
        self.attempts = 0
        self.opt_out: str | None = None  # evidence, for ROBOTS_DISALLOWED and OPT_OUT
        self.received: int | None = None  # bytes of a body that came to an end
        self.retry_after: float | None = None  # seconds the server asked for
        self.final = False  # True where another attempt must not be made though the reason is transient


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
    def authority(self) -> str:
        """Host and port as the Host header says them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def target_of(url: str) -> Target:
    """The parts of an http or https URL; user names and fragments are left out.

    Raises:
        Refusal: another scheme, no host, or a port out of range.
    """
    try:
        parts = urlsplit(url.strip())
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
        if scheme in ("http", "https") and ":" not in host:
            host = host.encode("idna").decode("ascii").rstrip(".") if host else ""
    except ValueError as error:  # includes UnicodeError of the idna codec
        raise Refusal(CollectReason.REFUSED_SCHEME, f"not a URL: {str(error)[:80]}") from error
    if scheme not in ("http", "https") or not host:
        raise Refusal(CollectReason.REFUSED_SCHEME, f"scheme {scheme[:20]!r} is not http or https, or there is no host")
    path = quote(parts.path or "/", safe=_UNQUOTED)
    if parts.query:
        path += "?" + quote(parts.query, safe=_UNQUOTED + "?[]|")
    return Target(scheme, host.lower(), port or (443 if scheme == "https" else 80), path)


def is_public(address: Address) -> bool:
    """True if the address, and any IPv4 address inside it, belongs to the public unicast internet."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.scope_id is not None:
            return False
        if _is_isatap(address) and not is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)):
            return False
    if any(address.version == net.version and address in net for net in _REFUSED):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_loopback)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped, 6to4 or NAT64 address leads to."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


def _is_isatap(address: ipaddress.IPv6Address) -> bool:
    """True if the last 64 bits are 0000:5efe or 0200:5efe and an IPv4 address."""
    return (int(address) >> 32) & 0xFDFFFFFF == 0x00005EFE


@dataclass
class Guard:
    """Resolves and checks. One object serves one task: answers are kept for its life, and are what is used.

    Args:
        allow_hosts: ``host:port`` pairs whose address is not checked, as the recipe says them.
    """

    allow_hosts: Iterable[str] = ()
    _answers: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.allow_hosts = frozenset(pair.strip().lower() for pair in self.allow_hosts)

    def allows(self, target: Target) -> bool:
        """True if the recipe exempts this host and port from the address rule."""
        plain, bracketed = f"{target.host}:{target.port}", f"[{target.host}]:{target.port}"
        return plain in self.allow_hosts or bracketed in self.allow_hosts

    def addresses(self, target: Target, timeout_s: float) -> list[str]:
        """Addresses that the target may be reached at, each checked.

        Raises:
            Refusal: ``REFUSED_ADDRESS`` if any answer is not public, ``CONNECTION`` if the name has no
                address, ``TIMEOUT`` if there is no answer within ``timeout_s`` seconds.
        """
        key = (target.host, target.port)
        with self._lock:
            known = self._answers.get(key)
        if known is None:
            known = _resolve(target.host, target.port, timeout_s)
            with self._lock:
                known = self._answers.setdefault(key, known)
        if not self.allows(target):
            for text in known:
                if not is_public(ipaddress.ip_address(text)):
                    raise Refusal(
                        CollectReason.REFUSED_ADDRESS,
                        f"{target.authority} leads to {text}, which is not a public address",
                    )
        return known


def _resolve(host: str, port: int, timeout_s: float) -> list[str]:
    """Addresses of ``host``; the system's resolver runs in a thread, because it knows no deadline."""
    answer: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            answer.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        found = answer.result(timeout=max(timeout_s, 0.0))
    except FutureTimeout as error:
        raise Refusal(CollectReason.TIMEOUT, f"the name {host} was not resolved in time") from error
    except (OSError, UnicodeError) as error:
        raise Refusal(CollectReason.CONNECTION, f"the name {host} has no address") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
