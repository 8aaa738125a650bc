"""User agent, opt-out headers, TDM reservations, Retry-After and robots rules."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.errors import RecipeError
from components.contracts.recipe import Collect
from components.data.manners import (
    Robots,
    agent_token,
    collector_user_agent,
    opt_out_evidence,
    retry_after_s,
    tdm_reserved,
    tdm_rules,
)

AGENT = "ateliercollector"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "evidence"),
    [
        (["noai"], "noai"),
        (["NoImageAI"], "NoImageAI"),
        (["noindex, nofollow"], "noindex, nofollow"),
        (["none"], "none"),
        (["max-snippet:-1, noai"], "max-snippet:-1, noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00, noai"], "unavailable_after: 25 Jun 2030 15:00:00, noai"),
        (["AtelierCollector: noai"], "AtelierCollector: noai"),
        (["*: noindex"], "*: noindex"),
        (["all", "otherbot: noindex, ateliercollector: noai"], "otherbot: noindex, ateliercollector: noai"),
        (["nofollow", "noarchive, noimageai"], "noarchive, noimageai"),
        (["otherbot: noindex, noai"], None),  # both speak to the other agent
        (["all"], None),
        (["max-snippet:-1, max-image-preview:large"], None),
        (["nofollow"], None),
        ([], None),
    ],
)
def test_opt_out_evidence(headers: list[str], evidence: str | None) -> None:
    assert opt_out_evidence(headers, AGENT) == evidence


def test_agent_token_is_the_product() -> None:
    assert agent_token("AtelierCollector/0.1 (+https://example.org)") == AGENT


def test_the_user_agent_names_the_contact() -> None:
    limits = Collect(contact="https://example.org/bot")
    assert collector_user_agent(limits) == "AtelierCollector/0.1 (+https://example.org/bot)"
    assert collector_user_agent(Collect(contact="bot@example.org")) == "AtelierCollector/0.1 (+bot@example.org)"
    assert collector_user_agent(Collect()) == "AtelierCollector/0.1"


@pytest.mark.parametrize(
    "changes",
    [
        {"contact": "call me"},
        {"contact": "https://a.example/\r\nX-Evil: 1"},
        {"contact": "https://a.example/)"},
        {"user_agent": ""},
        {"user_agent": "Ä/1"},
        {"user_agent": "Bot/1\r\nHost: b"},
    ],
)
def test_what_cannot_be_sent_as_a_user_agent_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(RecipeError):
        collector_user_agent(Collect.model_validate(changes))


@pytest.mark.parametrize(
    ("values", "reserved"),
    [(["1"], True), ([" 1 "], True), (["0"], False), (["0", "1"], True), ([], None), (["yes"], None)],
)
def test_tdm_reservation_headers(values: list[str], reserved: bool | None) -> None:
    assert tdm_reserved(values) is reserved


def test_tdmrep_json_reserves_paths_the_most_specific_decides() -> None:
    rules = tdm_rules(
        json.dumps(
            [
                {"location": "/", "tdm-reservation": 1, "tdm-policy": "https://a.example/p"},
                {"location": "/free/", "tdm-reservation": 0},
                {"location": "/free/*.png$", "tdm-reservation": 1},
                {"location": 7, "tdm-reservation": 1},
                "no rule",
            ]
        )
    )
    assert rules.forbids("http://a.example/x.jpg") == "Disallow: /"
    assert rules.forbids("http://a.example/free/x.jpg") is None
    assert rules.forbids("http://a.example/free/x.png") == "Disallow: /free/*.png$"


@pytest.mark.parametrize("text", ["", "{}", "<html>", "[" * 100_000, "null", '[{"location": "/\\nDisallow: /"}]'])
def test_what_is_no_tdmrep_json_reserves_nothing(text: str) -> None:
    assert tdm_rules(text).forbids("http://a.example/x.jpg") is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Fri, 20 Nov 2026 12:00:30", 30.0),  # without a zone it is UTC
        ("-5", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


@given(st.text(max_size=50))
def test_any_retry_after_is_a_wait_or_nothing(value: str) -> None:
    seconds = retry_after_s(value, NOW)
    assert seconds is None or seconds >= 0


def test_robots_rules_give_their_evidence() -> None:
    robots = Robots("User-agent: badbot\nDisallow: /\n\nUser-agent: *\nDisallow: /private # no\nAllow: /\n", AGENT)
    assert robots.forbids("http://a.example/img/1.jpg") is None
    assert robots.forbids("http://a.example/private/1.jpg") == "robots.txt: User-agent: *; Disallow: /private"


def test_rules_for_us_come_before_those_for_all_and_our_groups_are_one() -> None:
    text = """
        User-agent: *
        Disallow: /
        User-agent: other
        User-agent: AtelierCollector/2.0 beta
        Crawl-delay: 2
        Disallow: /no
        User-Agent: ateliercollector
        Disallow: /neither
        User-agent: atelier
        User-agent: collector
        Disallow: /yes
    """
    robots = Robots(text, AGENT)
    assert robots.forbids("http://a.example/yes.jpg") is None  # names that ours begins or ends with are not ours
    assert "Disallow: /no" in str(robots.forbids("http://a.example/no.jpg"))
    assert "Disallow: /neither" in str(robots.forbids("http://a.example/neither.jpg"))
    assert robots.delay_s == 2.0


@pytest.mark.parametrize(
    ("lines", "path", "allowed"),  # examples of RFC 9309, section 2.2.2, 2.2.3 and 5
    [
        ("Allow: /example/page/\nDisallow: /example/page/disallowed.gif", "/example/page/", True),
        ("Allow: /example/page/\nDisallow: /example/page/disallowed.gif", "/example/page/disallowed.gif", False),
        ("Disallow: /a\nAllow: /a", "/a", True),
        ("Disallow: *.gif$\nAllow: /publications/", "/publications/x.gif", True),
        ("Disallow: /*.gif$", "/any/x.gif", False),
        ("Disallow: /*.gif$", "/any/x.gif.jpg", True),
        ("Disallow: /foo/bar/%E3%83%84", "/foo/bar/ツ", False),
        ("Disallow: /foo/bar/%62%61%7A", "/foo/bar/baz", False),
        ("Disallow: /path/file-with-a-%2A.html", "/path/file-with-a-*.html", False),
        ("Disallow: /x?q=1", "/x?q=1&r=2", False),
        ("Disallow:", "/x", True),
        ("Sitemap: https://a.example/s.xml\nDisallow: /x", "/x", False),
    ],
)
def test_matching_is_that_of_rfc_9309(lines: str, path: str, allowed: bool) -> None:
    assert (Robots(f"User-agent: *\n{lines}", AGENT).forbids(f"http://a.example{path}") is None) is allowed


def test_no_robots_file_allows_and_a_failing_server_disallows() -> None:
    none, closed = Robots(None, AGENT), Robots(None, AGENT, closed="robots.txt: HTTP status 503")
    assert (none.forbids("http://a.example/x"), none.state) == (None, "none")
    assert (closed.forbids("http://a.example/x"), closed.state) == ("robots.txt: HTTP status 503", "closed")


def test_delays_from_crawl_delay_and_request_rate() -> None:
    assert Robots("User-agent: *\nCrawl-delay: 1.5", AGENT).delay_s == 1.5
    assert Robots("User-agent: *\nRequest-rate: 1/5s", AGENT).delay_s == 5.0
    assert Robots("User-agent: *\nCrawl-delay: nan", AGENT).delay_s == 0.0
    assert Robots("User-agent: other\nCrawl-delay: 9", AGENT).delay_s == 0.0


def test_a_huge_robots_file_is_read_and_asked_quickly() -> None:
    lines = [f"Disallow: /*{n}/private/" for n in range(20_000)]
    started = time.monotonic()
    robots = Robots("User-agent: *\n" + "\n".join(lines), AGENT)
    for n in range(20):
        assert robots.forbids(f"http://a.example/x{n}/private/y.jpg") is not None
        assert robots.forbids(f"http://a.example/x{n}/public/y.jpg") is None
    assert time.monotonic() - started < 10


@given(st.text(max_size=300))
def test_no_robots_file_is_too_odd_to_be_read(text: str) -> None:
    robots = Robots(text, AGENT)
    assert robots.delay_s >= 0
    evidence = robots.forbids("http://a.example/x.jpg")
    assert evidence is None or evidence.startswith("robots.txt: User-agent: ")
