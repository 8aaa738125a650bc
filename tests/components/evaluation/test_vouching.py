"""What the gate vouches for, and every way of walking around it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from components.contracts.errors import GateRefused
from components.evaluation.signing import ENVIRONMENT, Keys
from components.evaluation.vouching import (
    GATE,
    PROMOTION,
    gate_statement,
    newest,
    promotion_statement,
    vouched,
    weights_digest,
)
from components.runtime.storage import Artifact, Outcome, Store


@dataclass(frozen=True)
class Version:
    version: int
    name: str = "atelier"
    tags: dict[str, str] = field(default_factory=dict)


class House:
    """A registry in memory: versions, their models, and the key."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.store = Keys(folder), Store(str(folder / "store"))
        self.versions: list[Version] = []
        self.models: list[Artifact] = []

    def model(self, name: str) -> Artifact:
        draft = self.store.draft("model", {}, {"name": name})
        (draft.dir / "w.safetensors").write_text(name)
        return draft.commit(Outcome())

    def judged(self, name: str, verdict: str = "pass", policy: str = "p1") -> Version:
        model = self.model(name)
        content: dict[str, Any] = {
            "model": model.digest, "weights": weights_digest(model), "data": "d", "assessment": "a", "judge": "j",
            "verdict": verdict, "policy_digest": policy,
        }  # fmt: skip
        made = Version(len(self.versions) + 1, tags={GATE: self.keys.sign(gate_statement(content, f"r-{name}"))})
        self.versions.append(made)
        self.models.append(model)
        return made

    def promote(self, number: int, serial: int, forced: bool = False) -> Version:
        said = promotion_statement(self.versions[number - 1], serial, "why not", forced)
        return self.tag(number, **{PROMOTION: self.keys.sign(said)})

    def tag(self, number: int, **tags: str) -> Version:
        old = self.versions[number - 1]
        self.versions[number - 1] = replace(old, tags=old.tags | tags)
        return self.versions[number - 1]

    def ask(self, number: int, policy: str | None = "p1", model: Artifact | None = None) -> Any:
        version = self.versions[number - 1]
        return vouched(version, self.versions, self.keys, model or self.models[number - 1], policy)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    made = House(tmp_path)
    made.judged("one")
    made.promote(1, 1)
    return made


def test_a_champion_that_passed_is_vouched_for(house: House) -> None:
    said = house.ask(1)
    assert (said.serial, said.verdict, said.forced) == (1, "pass", "") and "@" in said.by and said.at.endswith("+00:00")
    house.judged("two")
    house.promote(2, 2)
    assert house.ask(2).serial == 2
    assert newest(house.versions, house.keys) == (house.versions[1], 2)


def test_an_alias_moved_by_hand_to_a_model_that_failed(house: House) -> None:
    house.judged("bad", "fail")
    with pytest.raises(GateRefused, match=r"promotion of version 2 of atelier carries no signature"):
        house.ask(2)


def test_an_alias_moved_by_hand_to_an_earlier_champion(house: House) -> None:
    house.judged("two")
    house.promote(2, 2)
    with pytest.raises(GateRefused, match=r"moved by hand to version 1 .*version 2 was made champion after it"):
        house.ask(1)
    house.promote(1, 3)  # what a rollback does
    assert house.ask(1).serial == 3


def test_a_replayed_record_and_a_replayed_promotion(house: House) -> None:
    one = house.versions[0]
    house.judged("bad", "fail")
    house.tag(2, **{PROMOTION: one.tags[PROMOTION]})
    with pytest.raises(GateRefused, match="is that of version 1"):
        house.ask(2)
    house.promote(2, 2)
    house.tag(2, **{GATE: one.tags[GATE]})
    with pytest.raises(GateRefused, match="another record of the gate"):
        house.ask(2)
    house.promote(2, 3)  # even signed again, it is a record of another model
    with pytest.raises(GateRefused, match="about another model"):
        house.ask(2)


def test_a_failed_verdict_cannot_be_promoted_without_force(house: House) -> None:
    house.judged("bad", "fail")
    house.promote(2, 2)
    with pytest.raises(GateRefused, match="verdict on version 2 of atelier is fail"):
        house.ask(2)
    house.promote(2, 3, forced=True)
    said = house.ask(2)
    assert said.verdict == "fail" and said.forced == "why not"


def test_a_stale_policy(house: House) -> None:
    with pytest.raises(GateRefused, match=r"another policy .*policy p2, found p1.*atelier release"):
        house.ask(1, policy="p2")
    assert house.ask(1, policy=None).verdict == "pass"


def test_tampered_weights(house: House) -> None:
    with pytest.raises(GateRefused, match="about another model"):
        house.ask(1, model=house.model("other"))
    manifest = house.models[0].manifest
    other = house.model("other").manifest.files["w.safetensors"]
    forged = manifest.model_copy(update={"files": {"w.safetensors": other}})  # under the digest that was signed
    with pytest.raises(GateRefused, match="weights of version 1 of atelier are not those"):
        house.ask(1, model=Artifact(house.models[0].url, forged))


def test_a_forged_tag_is_no_promotion(house: House) -> None:
    text = house.versions[0].tags[PROMOTION].replace('"serial":1', '"serial":9')
    house.tag(1, **{PROMOTION: text})
    assert newest(house.versions, house.keys) is None
    with pytest.raises(GateRefused, match="changed after it was signed"):
        house.ask(1)
