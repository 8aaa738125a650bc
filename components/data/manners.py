"""What site owners ask of collectors: robots.txt, X-Robots-Tag, TDM reservations and pauses.

Sources: RFC 9309 (robots.txt), RFC 9110 10.2.3 (Retry-After), Google's specification of X-Robots-Tag, and the
TDM Reservation Protocol (W3C Community Group final report, 2024-05-10).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.metadata import version
from urllib.parse import unquote

from protego import Protego

from components.contracts.errors import RecipeError
from components.contracts.recipe import Collect

OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "none"})  # "none" stands for noindex, nofollow
PARSER = f"protego {version('protego')}; headers 1; tdmrep 1"  # raised when a reading of ours changes
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # have a colon of their own
_NAMED = re.compile(r"^([A-Za-z0-9._*-]+)\s*:\s*(.*)$", re.DOTALL)
_AGENT = re.compile(r"[A-Za-z_-]+(/[!-'*-~]+)?( [ -~]+)?")
_CONTACT = re.compile(r"https?://[!-'*-~]+|(mailto:)?[!-'*-?A-~]+@[!-'*-?A-~]+")
_USER_AGENT_LINE = re.compile(r"\s*user[- ]?agent\s*[:\s]\s*(\*|[A-Za-z_-]*)", re.IGNORECASE)
_RULE_LINE = re.compile(r"\s*(allow|dis|dia|crawl|request)", re.IGNORECASE)  # also as Protego knows it misspelt
_DISALLOW_LINE = re.compile(r"\s*(?:dis|dia)\w*\s*[:\s]\s*([A-Za-z0-9_.~/-]*)", re.IGNORECASE)
_EVIDENCE_LINES = 500  # of a robots.txt that are tried when the one that forbids is looked for


def collector_user_agent(limits: Collect) -> str:
    """The User-Agent header: the product, and how to reach who runs it: ``AtelierCollector/0.1 (+CONTACT)``.

    Raises:
        RecipeError: ``collect.user_agent`` has no product token, or ``collect.contact`` is no URL or e-mail address.
    """
    if not _AGENT.fullmatch(limits.user_agent):
        raise RecipeError(
            f"collect.user_agent is {limits.user_agent[:80]!r}",
            expected="a product token of letters, '-' and '_' and a version, such as AtelierCollector/0.1 (RFC 9309)",
        )
    if limits.contact is None:
        return limits.user_agent
    if not _CONTACT.fullmatch(limits.contact):
        raise RecipeError(
            f"collect.contact is {limits.contact[:80]!r}",
            expected="an http(s) URL or an e-mail address, in ASCII and without brackets",
            remedy="--set collect.contact=https://example.org/our-collector",
        )
    return f"{limits.user_agent} (+{limits.contact})"


def agent_token(user_agent: str) -> str:
    """The name by which robots rules call a collector: the product before the slash, in lower case."""
    return user_agent.split("/", 1)[0].split()[0].lower()


def opt_out_evidence(headers: Iterable[str], agent: str) -> str | None:
    """The first X-Robots-Tag value, verbatim, that forbids this agent to use the picture; None if there is none.

    A value is a list of directives; ``name:`` before a directive makes it and those after it speak to that
    agent only (``"otherbot: noindex, noarchive"``). Directives of our own name, of ``*`` and of nobody count.

    Args:
        headers: every X-Robots-Tag value of the answer.
        agent: our name as :func:`agent_token` gives it.
    """
    for value in headers:
        speaks_to: str | None = None
        for part in value.split(","):
            directive = part.strip().lower()
            named = _NAMED.match(directive)
            if named and named[1] not in _VALUED:
                speaks_to, directive = named[1], named[2].strip()
            if speaks_to in (None, "*", agent) and directive in OPT_OUT_DIRECTIVES:
                return value.strip()
    return None


def tdm_reserved(values: Iterable[str]) -> bool | None:
    """What ``tdm-reservation`` headers say: True (1) if rights are reserved, False (0) if not, None if nothing."""
    said = {value.strip() for value in values}
    return True if "1" in said else False if "0" in said else None


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait from ``now``; None if there is none or it is not one."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - now).total_seconds())


class Rules:
    """Allow and Disallow lines that all speak to us; the longest that matches decides (RFC 9309 2.2.2)."""

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self._lines = list(lines)
        self.size = sum(map(len, self._lines))  # characters
        self._parser = Protego.parse("\n".join(["User-agent: *", *self._lines]))

    @property
    def delay_s(self) -> float:
        """Seconds between two requests, from Crawl-delay or Request-rate; 0 if neither is said."""
        rate = self._parser.request_rate("*")
        return max(self._parser.crawl_delay("*") or 0.0, rate.seconds / rate.requests if rate else 0.0)

    def forbids(self, url: str) -> str | None:
        """The line, verbatim, that forbids a URL; None if it may be fetched."""
        return None if self._parser.can_fetch(url, "*") else self._deciding(url)

    @cached_property
    def _disallowing(self) -> list[tuple[str, str]]:
        """Disallow lines with the part before their first special character, the longest lines first."""
        found = [(match[1], line) for line in self._lines if (match := _DISALLOW_LINE.match(line))]
        return sorted(found, key=lambda pair: -len(pair[1]))

    def _deciding(self, url: str) -> str:
        path = unquote("/" + url.split("/", 3)[3]) if url.count("/") > 2 else "/"
        candidates = [line for start, line in self._disallowing if path.startswith(start)]
        for line in candidates[:_EVIDENCE_LINES]:
            if not Protego.parse(f"User-agent: *\n{line}").can_fetch(url, "*"):
                return line.strip()
        return f"one of {len(candidates)} lines of Disallow"


class Robots:
    """One robots.txt, as it speaks to one agent (RFC 9309 2.2.1): the groups of its name together, else those of ``*``.

    Args:
        text: the file, or None when the site has none (every path is allowed).
        agent: our name as :func:`agent_token` gives it.
        closed: the file could not be had though there may be one: every path is disallowed (RFC 9309 2.3.1.4).
    """

    def __init__(self, text: str | None, agent: str, closed: str | None = None) -> None:
        self._closed = closed
        self.state = "closed" if closed else "none" if text is None else "allowed"
        self._name, lines = _group(text or "", agent)
        self._rules = Rules(lines)

    @property
    def size(self) -> int:
        """Characters of the lines that hold for us."""
        return self._rules.size

    @property
    def delay_s(self) -> float:
        """Seconds between two requests that the file asks of us; 0 if it does not."""
        return self._rules.delay_s

    def forbids(self, url: str) -> str | None:
        """The rule that forbids us to fetch the URL, as evidence; None if we may."""
        if self._closed:
            return self._closed
        line = self._rules.forbids(url)
        return None if line is None else f"robots.txt: User-agent: {self._name}; {line}"


def _group(text: str, agent: str) -> tuple[str, list[str]]:
    """The name whose groups hold for us, ours or ``*``, and their lines."""
    groups: dict[str, list[str]] = {}
    names: set[str] = set()
    naming = False
    for line in text.splitlines():
        line = line.partition("#")[0]
        if match := _USER_AGENT_LINE.match(line):
            names = names if naming else set()
            naming = True
            names.add(match[1].lower())
            groups.setdefault(match[1].lower(), [])
        elif _RULE_LINE.match(line):
            naming = False
            for name in names & {agent, "*"}:
                groups[name].append(line)
    name = agent if agent in groups else "*"
    return name, groups.get(name, [])


def tdm_rules(text: str) -> Rules:
    """The paths that ``/.well-known/tdmrep.json`` reserves, as rules that forbid them; what cannot be read reserves
    nothing, because the protocol reserves by saying so."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return Rules()
    lines = []
    for entry in entries if isinstance(entries, list) else []:
        location = entry.get("location") if isinstance(entry, dict) else None
        if not isinstance(location, str) or not location.isprintable() or "#" in location:
            continue
        reserved = str(entry.get("tdm-reservation"))
        if reserved in ("0", "1"):
            lines.append(f"{'Disallow' if reserved == '1' else 'Allow'}: {location}")
    return Rules(lines)
