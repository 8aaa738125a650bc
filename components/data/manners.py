"""What site owners ask of collectors: robots.txt and X-Robots-Tag."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.robotparser import RobotFileParser

OPT_OUT_DIRECTIVES = frozenset({"noai", "noimageai", "noindex", "none"})  # "none" stands for noindex, nofollow
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # have a colon of their own
_NAMED = re.compile(r"^([A-Za-z0-9._*-]+)\s*:\s*(.*)$", re.DOTALL)


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


class Robots:
    """The rules of one robots.txt (RFC 9309), read by the standard library's parser.

    Args:
        text: the file, or None when the site has none (every path is allowed).
        closed: the file could not be had though there may be one: every path is disallowed (RFC 9309 2.3.1.4).
    """

    def __init__(self, text: str | None, closed: str | None = None) -> None:
        self._closed = closed
        self._parser = RobotFileParser()
        self._parser.parse((text or "").splitlines())

    def forbids(self, agent: str, url: str) -> str | None:
        """The rule that forbids this agent to fetch the URL, as evidence; None if it may."""
        if self._closed:
            return self._closed
        if self._parser.can_fetch(agent, url):
            return None
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        entries = [e for e in self._parser.entries if e.applies_to(agent)]  # type: ignore[attr-defined]
        default = self._parser.default_entry  # type: ignore[attr-defined]
        for entry in entries[:1] or [e for e in [default] if e]:
            for rule in entry.rulelines:
                if rule.applies_to(path):
                    return f"robots.txt: User-agent: {', '.join(entry.useragents)}; {rule}"
        return "robots.txt"
