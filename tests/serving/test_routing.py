"""Which version a request gets, with the real engine and painters for models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluation.registry import CHALLENGER, SHADOW
from components.evaluation.signing import Keys
from serving.engine import Engine, NoModel, Served
from serving.follower import Follower
from serving.metrics import Metrics
from serving.routing import Router, UnknownVersion, models
from serving.sharing import chance


@pytest.fixture
def make(make_painter: Any) -> Iterator[Callable[..., Any]]:
    """A router over an engine without a model, and what it dropped: ``.router``, ``.drops``, ``.served(version)`` …"""
    engines = []

    def build(**options: Any) -> Any:
        metrics = Metrics()
        engine = Engine(max_batch=4, max_queue=8, metrics=metrics, warm_up_s=0.0)
        engines.append(engine)
        drops: list[tuple[str, str, str]] = []
        router = Router(engine, metrics, dropped=lambda *what: drops.append(what), **options)

        def served(version: str) -> Served:
            return Served(version, make_painter(version), version * 8)

        return SimpleNamespace(router=router, metrics=metrics, engine=engine, drops=drops, served=served)

    yield build
    for engine in engines:
        engine.close(2)


def test_the_champion_answers_everybody_until_there_is_a_challenger(make: Any) -> None:
    it = make(canary_share=1.0)
    with pytest.raises(NoModel):
        it.router.route("k")
    it.router.swap(champion := it.served("1"))
    assert it.router.route("k") is champion and it.router.role(champion) is None
    it.router.trial(CHALLENGER, challenger := it.served("2"))
    assert it.router.route("k") is challenger and it.router.role(challenger) == "canary"
    assert it.router.route(None) is champion  # nobody's key: no share of keys
    it.router.trial(CHALLENGER, None)
    assert it.router.route("k") is champion


def test_a_share_of_the_keys_gets_the_challenger_and_always_the_same(make: Any) -> None:
    it = make(canary_share=0.2)
    it.router.swap(it.served("1"))
    it.router.trial(CHALLENGER, it.served("2"))
    keys = [f"key{i}" for i in range(2000)]
    first = [it.router.route(key).version for key in keys]
    assert first == [it.router.route(key).version for key in keys]
    assert 0.16 < first.count("2") / len(keys) < 0.24


@given(st.text(max_size=40))
def test_a_chance_is_a_fixed_number_below_one(name: str) -> None:
    assert 0 <= chance("a", name) == chance("a", name) < 1


def test_a_version_can_be_asked_for_if_it_is_loaded_and_may_be_shown(make: Any) -> None:
    it = make()
    it.router.swap(it.served("1"))
    it.router.trial(CHALLENGER, it.served("2"))
    it.router.trial(SHADOW, it.served("3"))
    assert [it.router.route("k", version).version for version in ("champion", "1", "challenger", "2")] == [*"1122"]
    for version in ("3", "shadow", "x" * 500):
        with pytest.raises(UnknownVersion, match="Known: 1, 2, challenger, champion"):
            it.router.route("k", version)


def test_a_champion_whose_first_requests_fail_is_given_up_for_the_one_before(make: Any, until: Any) -> None:
    it = make(probation=20, max_error_rate=0.1)
    it.router.swap(before := it.served("1"))
    it.router.swap(bad := it.served("2"))
    for status in (200, 500, 429, 503, 499, 500, 400):
        it.router.finished(bad, status, request_id="r")
    assert it.engine.served is bad and not it.drops  # 2 of 20 may fail; what is no failure of the model does not count
    it.router.finished(bad, 500, request_id="r")
    until(lambda: it.drops)
    assert it.engine.served is before and it.drops == [("2", "1", "3 of its first 4 requests failed")]
    assert b"atelier_dropped_models_total 1.0" in it.metrics.text()
    it.router.finished(bad, 500, request_id="r")  # still under way when it was given up
    assert it.engine.served is before and len(it.drops) == 1


def test_after_its_first_requests_a_champion_is_left_to_the_watch(make: Any) -> None:
    it = make(probation=5, max_error_rate=0.1)
    it.router.swap(it.served("1"))
    it.router.swap(good := it.served("2"))
    for status in (200, 200, 200, 200, 200, 500, 500, 500):
        it.router.finished(good, status, request_id="r")
    assert it.engine.served is good and not it.drops
    assert it.router._watched == {}  # and the version before it is let go


def test_a_version_that_is_gone_back_to_is_not_given_up_for_the_bad_one(make: Any) -> None:
    it = make(probation=5, max_error_rate=0.0)
    for version in ("1", "2"):
        it.router.swap(it.served(version))
    it.router.swap(back := it.served("1"))
    for _ in range(5):
        it.router.finished(back, 500, request_id="r")
    assert it.engine.served is back and not it.drops and it.router._watched == {}


def test_the_first_champion_and_probation_off(make: Any) -> None:
    for options in ({"probation": 10}, {"probation": 0}):
        it = make(**options)
        if not options["probation"]:
            it.router.swap(it.served("0"))
        it.router.swap(only := it.served("1"))
        for _ in range(20):
            it.router.finished(only, 500, request_id="r")
        assert it.engine.served is only and not it.drops


def test_a_challenger_that_fails_gets_no_more_requests(make: Any, until: Any) -> None:
    it = make(canary_share=1.0, probation=10, max_error_rate=0.1)
    it.router.swap(champion := it.served("1"))
    it.router.trial(CHALLENGER, it.served("2"))
    assert b'atelier_trial_info{alias="challenger",version="2"} 1.0' in it.metrics.text()
    for _ in range(2):
        it.router.finished(it.router.route("k"), 500, request_id="r")
    until(lambda: it.router.route("k") is champion)
    assert it.engine.served is champion and not it.drops
    text = it.metrics.text()
    assert b'atelier_canary_requests_total{status="500"} 2.0' in text and b"atelier_trial_info{" not in text


def test_what_people_compare(make: Any, tmp_path: Path, make_painter: Any) -> None:
    it = make(canary_share=0.25)
    it.router.swap(it.served("1"))
    it.router.trial(CHALLENGER, it.served("2"))
    follower = Follower(
        f"sqlite:///{tmp_path / 'none.db'}", "x", "atelier", load=lambda _: make_painter(), switch=it.router.swap,
        metrics=it.metrics, keys=Keys(tmp_path),
    )  # fmt: skip
    follower._tags["2"] = {"verdict": "pass", "reasons": "not inferior on known\nfirst", "failures": ""}
    champion, challenger = models(it.router, follower)
    assert (champion["role"], champion["version"], champion["verdict"]) == ("champion", "1", None)
    assert challenger["share"] == 0.25 and challenger["served"] is True and challenger["compared"] is None
    assert challenger["reasons"] == ["not inferior on known", "first"] and challenger["failures"] == []
