"""Opt-out headers and robots rules."""

from __future__ import annotations

import pytest

from components.data.manners import Robots, agent_token, opt_out_evidence

AGENT = "ateliercollector"


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


def test_robots_rules_give_their_evidence() -> None:
    robots = Robots("User-agent: badbot\nDisallow: /\n\nUser-agent: *\nDisallow: /private\nAllow: /\n")
    assert robots.forbids(AGENT, "http://a.example/img/1.jpg") is None
    evidence = robots.forbids(AGENT, "http://a.example/private/1.jpg")
    assert evidence is not None and "Disallow: /private" in evidence and "*" in evidence


def test_rules_for_us_come_before_those_for_all() -> None:
    robots = Robots("User-agent: *\nDisallow: /\n\nUser-agent: AtelierCollector\nDisallow: /no\n")
    assert robots.forbids(AGENT, "http://a.example/yes.jpg") is None
    assert robots.forbids(AGENT, "http://a.example/no.jpg") is not None


def test_no_robots_file_allows_and_a_failing_server_disallows() -> None:
    assert Robots(None).forbids(AGENT, "http://a.example/x") is None
    assert Robots(None, closed="robots.txt: HTTP status 503").forbids(AGENT, "http://a.example/x")
