"""What was taken down and must not come back: the store's list of URLs, pictures and hosts.

The list lies in ``{store}/takedown/blocklist.json``. It is circumstance: no artifact's identity depends on it, and
it names no URL in the clear, only the SHA-256 of its normal form. :mod:`components.data.forgetting` adds to it and
removes what it names; collecting and filtering ask it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

import fsspec
import idna

from components.contracts.errors import ArtifactError, InputError, RuntimeUnavailable
from components.contracts.manifest import canonical_json, sha256_text
from components.runtime.storage import write_bytes

KINDS = ("url", "sha256", "host")
_FILE = "takedown/blocklist.json"
_TAKING_DOWN = "takedown/forget"
LOCK_NAME = "takedown-forget.lock"  # of a local store, in its folder `locks`
_LOOK_S = 2.0  # others that only look hold it for less
_HEX = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True)
class Blocklist:
    """The rules in force: ``{kind}:{value}`` to what is known of each. Picklable; asking costs microseconds.

    Args:
        rules: by key ``url:{SHA-256 of the normal form}``, ``sha256:{of a picture's bytes}`` or ``host:{name}``;
            each with ``at`` (UTC) and, for a picture found through other rules, ``because``: their keys.
    """

    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, store_url: str) -> Blocklist:
        """The list of the store at ``store_url``; empty where there is none.

        Raises:
            ArtifactError: it cannot be read. Nothing may be collected then: it might bring back what was taken down.
        """
        fs, path = fsspec.core.url_to_fs(f"{store_url}/{_FILE}")
        try:
            rules = json.loads(fs.cat_file(path))["rules"]
            if not all(k.partition(":")[0] in KINDS and isinstance(v["at"], str) for k, v in rules.items()):
                raise ValueError("a rule of no known kind")
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"The takedown list {store_url}/{_FILE} cannot be read: {type(error).__name__}: {error}",
                expected="the file that `atelier forget` wrote",
                remedy="restore it from a backup; without it what was taken down could come back",
            ) from error
        return cls(rules)

    @classmethod
    def add(cls, store_url: str, keys: Mapping[str, Iterable[str]]) -> Blocklist:
        """Add rules to the list of a store, atomically; rules that it has stay as they are.

        Args:
            store_url: of the artifact store.
            keys: rules to the rules because of which they are added (none for what was asked for itself).

        Returns:
            The list as it is now.
        """
        from components.runtime.revision import exclusive

        with exclusive(f"{store_url}/{_FILE}"):
            known = cls.of(store_url)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            rules = {key: dict(rule) for key, rule in known.rules.items()}
            for key, because in keys.items():
                rule = rules.setdefault(key, {"at": now})
                if reasons := sorted({*rule.get("because", ()), *because}):
                    rule["because"] = reasons
            if rules != known.rules:
                text = json.dumps({"version": 1, "rules": rules}, indent=1, sort_keys=True)
                write_bytes(f"{store_url}/{_FILE}", text.encode())
        return cls(rules)

    def __len__(self) -> int:
        return len(self.rules)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the rules, whenever they were added."""
        return sha256_text(canonical_json(sorted(self.rules)))

    def evidence(self) -> dict[str, Any]:
        """Which list was in force, for an artifact's evidence or circumstance."""
        return {"digest": self.digest, "rules": len(self)}

    def blocks(self, url: str | None = None, sha256: str | None = None) -> str | None:
        """The rule that blocks a picture, or None.

        Args:
            url: where it is; a rule for a host holds for all its subdomains.
            sha256: of its bytes, hex.
        """
        if not self.rules:
            return None
        if sha256 is not None and (key := f"sha256:{sha256.lower()}") in self.rules:
            return key
        if url is None or not self._asks_urls:
            return None
        host, normal = _normalised(url)
        if (key := _url_key(normal)) in self.rules:
            return key
        if host:
            labels = [host] if _is_address(host) else host.split(".")
            for start in range(len(labels)):
                if (key := f"host:{'.'.join(labels[start:])}") in self.rules:
                    return key
        return None

    @cached_property
    def _asks_urls(self) -> bool:
        return any(not key.startswith("sha256:") for key in self.rules)


def rule(kind: str, value: str) -> str:
    """The key of a rule: ``kind`` is one of :data:`KINDS`, ``value`` what the user gave.

    Raises:
        InputError: it is no URL, no SHA-256 or no host name.
    """
    text = value.strip()
    if kind == "sha256":
        if not _HEX.fullmatch(text.lower()):
            raise InputError(f"{value!r} is no SHA-256", expected="64 hexadecimal digits, as the ledger's sha256")
        return f"sha256:{text.lower()}"
    if kind == "url":
        host, normal = _normalised(text)
        if not text or ("://" in text and not host and not text.lower().startswith("file:")):
            raise InputError(f"{value!r} is no URL", expected="an address as in the ledger, such as https://host/a.jpg")
        return _url_key(normal)
    host = _host(text)
    named = "." in host or host == "localhost"
    if not _is_address(host) and not (named and all(_LABEL.fullmatch(label) for label in host.split("."))):
        raise InputError(
            f"{value!r} is no host name",
            expected="a name with a dot or an address, such as example.org, without scheme, port and path",
            remedy="for one page give --url; for all pages of a site the host alone",
        )
    return f"host:{host}"


def rule_of(text: str) -> str:
    """The key of a rule whose kind is seen from its form: a URL has ``://``, a SHA-256 64 digits, a host neither.

    Raises:
        InputError: it is none of the three.
    """
    text = text.strip()
    return rule("url" if "://" in text else "sha256" if _HEX.fullmatch(text.lower()) else "host", text)


def _url_key(normal: str) -> str:
    return f"url:{hashlib.sha256(normal.encode('utf-8', 'surrogatepass')).hexdigest()}"


@contextlib.contextmanager
def taking_down(store_url: str) -> Iterator[None]:
    """No other process takes samples out of the store while the block lasts.

    Raises:
        RuntimeUnavailable: one does.
    """
    from components.runtime.revision import exclusive

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(f"{store_url}/{_TAKING_DOWN}", wait_s=0))
        except RuntimeUnavailable as error:
            raise RuntimeUnavailable(
                f"Another `atelier forget` is at work on the store {store_url}",
                expected="one at a time",
                remedy="wait for it to end, then run the same command again",
            ) from error
        yield


def not_while_taking_down(store_url: str) -> None:
    """To be asked by a stage that has its own lock, before it reads artifacts. Whoever takes samples out announces it
    first and looks for stages then, so that at least one of the two sees the other.

    Raises:
        RuntimeUnavailable: samples are being taken out of the store: what is read now may be gone soon.
    """
    from components.runtime.revision import exclusive

    try:
        with exclusive(f"{store_url}/{_TAKING_DOWN}", wait_s=_LOOK_S):
            pass
    except RuntimeUnavailable as error:
        raise RuntimeUnavailable(
            f"Samples are being taken out of the store {store_url}",
            expected="no `atelier forget` at work on it",
            remedy="wait for it to end, then run the same command again",
        ) from error


def _normalised(url: str) -> tuple[str, str]:
    """Host and normal form of a URL (RFC 3986, section 6.2): case, IDNA, default port, escapes; no user, no fragment.

    http and https are one: a picture taken down is taken down under both. What has no host is taken as it is.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, port = _host(parts.hostname or ""), parts.port
    except ValueError:  # a broken address or port: compared as it is written
        return "", text
    if not host:
        return "", text
    scheme = parts.scheme.lower()
    shown = f"[{host}]" if ":" in host else host
    if port is not None and port != {"http": 80, "https": 443}.get(scheme):
        shown += f":{port}"
    path = quote(_ESCAPE.sub(_unescaped, parts.path or "/"), safe="%/:@!$&'()*+,;=-._~")
    query = quote(_ESCAPE.sub(_unescaped, parts.query), safe="%/:@!$&'()*+,;=-._~?")
    known = "http" if scheme in ("http", "https", "") else scheme
    return host, f"{known}://{shown}{path}" + (f"?{query}" if query else "")


def _unescaped(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if char in _UNRESERVED else match[0].upper()


def _host(name: str) -> str:
    """The host in lower case, as IDNA's ASCII form (RFC 5891 with the mapping of UTS 46), without a last dot."""
    text = name.strip().strip("[]").lower().rstrip(".")
    if _is_address(text):
        return str(ipaddress.ip_address(text))
    if text.isascii():
        return text
    try:
        return idna.encode(text, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        return text


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
