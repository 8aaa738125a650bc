"""A whole serving process without Ray: champion, challenger and shadow of a real registry, with real (tiny) models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from components.contracts.recipe import Recipe
from components.evaluation.dropping import Drops
from components.evaluation.registry import CHALLENGER, SHADOW
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from serving.api import build_api
from serving.assembly import assemble
from serving.auth import make_key
from serving.logbook import read_logbook
from serving.sharing import chance

ASK = {"prompt": "a red star", "num_inference_steps": 2, "seed": 4}


class House:
    """A registry with versions 1 (champion), 2 (passed) and 3 (failed), and servers of it."""

    def __init__(self, root: Path, gate: Any, tiny_models: Callable[[int], Artifact]) -> None:
        shares = {"canary_share": 0.5, "shadow_share": 1.0, "probation_requests": 20}
        self.recipe = Recipe.model_validate({"name": "x", "serve": shares, "run": {"root": str(root)}})
        self.ctx = Context.of(self.recipe)
        self.gate = gate(self.ctx.registry_uri, self.ctx.home, "x", self.recipe.release)
        for seed, verdict in ((1, "pass"), (2, "pass"), (3, "fail")):
            made = self.gate.register(tiny_models(seed), verdict, reasons=f"reason of {seed}")
            self.gate.tracker.tag_version("atelier", made.version, {"verdict": verdict})
        self.gate.promote(1)
        self.parts: list[Any] = []

    def server(self, replica: str) -> tuple[Any, TestClient]:
        parts = assemble(self.recipe, self.ctx.home, self.ctx.registry_uri, True, replica)
        self.parts.append(parts)
        parts.follower._every = 0.05
        parts.start()
        return parts, TestClient(build_api(parts.service))

    def key(self, canary: bool) -> dict[str, str]:
        """The header of a new key on that side."""
        while True:
            key = make_key(self.ctx.home / "keys.json", "k")
            if (chance("canary", key.split("-")[1]) < 0.5) == canary:
                return {"Authorization": f"Bearer {key}"}

    def rows(self) -> list[dict[str, Any]]:
        for parts in self.parts:
            parts.service.logbook.flush()
        return list(read_logbook(self.ctx.home / "logbook").to_pylist())


@pytest.fixture
def house(tmp_path: Path, gate: Any, tiny_models: Callable[[int], Artifact]) -> Iterator[House]:
    made = House(tmp_path, gate, tiny_models)
    yield made
    for parts in made.parts:
        parts.close()


def test_canary_and_shadow_from_the_registry_to_the_logbook(house: House, until: Any) -> None:
    tracker = house.gate.tracker
    tracker.set_alias("atelier", CHALLENGER, 2)
    tracker.set_alias("atelier", SHADOW, 3)
    _, client = house.server("a")
    ours, theirs = house.key(canary=False), house.key(canary=True)
    answers = [client.post("/v1/images/generations", json=ASK, headers=key).json() for key in (ours, theirs, ours)]
    assert [answer["model_version"] for answer in answers] == ["1", "2", "1"]
    assert answers[0]["data"][0]["b64_json"] != answers[1]["data"][0]["b64_json"]
    until(lambda: sum(row["role"] == "shadow" for row in house.rows()) == 2)  # of the champion's two requests
    told = {(row["role"], row["model_version"]) for row in house.rows()}
    assert told == {(None, "1"), ("canary", "2"), ("shadow", "3")}
    listed = client.get("/playground/models", headers=ours).json()["models"]
    assert [(m["role"], m["version"], m["verdict"], m["served"]) for m in listed] == [
        ("champion", "1", "pass", True), ("challenger", "2", "pass", True), ("shadow", "3", "fail", False),
    ]  # fmt: skip
    assert listed[2]["compared"]["requests"] == 2 and 0 < listed[2]["compared"]["difference"] < 1
    assert listed[1]["reasons"] == ["reason of 2"]
    health = client.get("/healthz").json()
    assert (health["challenger"], health["shadow"], health["dropped"]) == ("2", "3", False)
    text = client.get("/metrics").text
    assert 'atelier_canary_requests_total{status="200"} 1.0' in text
    assert 'atelier_shadow_requests_total{outcome="drawn"} 2.0' in text
    tracker.delete_alias("atelier", CHALLENGER)
    until(lambda: client.get("/healthz").json()["challenger"] is None)
    assert client.post("/v1/images/generations", json=ASK, headers=theirs).json()["model_version"] == "1"


def test_a_champion_that_fails_is_given_up_by_all_replicas(house: House, until: Any) -> None:
    key = house.key(canary=False)
    (first, client), (_, other) = house.server("a"), house.server("b")
    house.gate.promote(2)
    for each in (client, other):
        until(lambda each=each: each.get("/version").json()["model_version"] == "2")

    def fails(*_: Any) -> Any:
        raise RuntimeError("it draws no more")

    first.service.engine.served.generator.begin = fails
    statuses = [client.post("/v1/images/generations", json=ASK, headers=key).status_code for _ in range(2)]
    assert statuses == [500, 500]  # more than 5% of 20 requests
    until(lambda: client.get("/version").json()["model_version"] == "1")
    assert client.post("/v1/images/generations", json=ASK, headers=key).status_code == 200
    until(lambda: other.get("/version").json()["model_version"] == "1")
    for each in (client, other):
        health = each.get("/healthz").json()
        assert health["status"] == "degraded" and health["dropped"] is True and health["refused_version"] == "2"
    why = Drops(house.ctx.home, house.gate.keys).why(house.gate.tracker.version("atelier", 2))
    assert why == "2 of its first 2 requests failed"
    _, late = house.server("c")
    assert late.get("/version").json()["model_version"] == "1"
    metrics = other.get("/metrics").text
    assert 'atelier_dropped_models_total{replica="a"} 1.0' in metrics and 'replica="b"' in metrics
    house.gate.promote(1)  # what the watch does
    until(lambda: all(each.get("/healthz").json()["status"] == "ok" for each in (client, other, late)))
