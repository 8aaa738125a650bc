"""Following the champion of a real registry, with models that are whole, damaged or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Release
from components.evaluation.registry import CHALLENGER, CHAMPION, SHADOW
from components.evaluation.signing import KEY_FILE, Keys
from components.evaluation.vouching import policy_digest
from components.runtime.opening import open_artifact
from components.runtime.storage import Artifact, Outcome, Store
from components.runtime.tracking import Tracker
from serving.engine import Served
from serving.follower import Follower
from serving.loading import model_folder
from serving.metrics import Metrics


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh registry file: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "x")
    return path


class World:
    """A registry, a store, and a follower that keeps what it was told to serve."""

    def __init__(self, folder: Path, registry: Path, painter: Any, gate: Any) -> None:
        self._gate, self.folder, self.db = gate, folder, folder / "mlflow.db"
        self._fresh = registry
        self.store = Store(str(folder / "store"))
        self.switched: list[Served] = []
        self.metrics = Metrics()
        self.loads = 0
        self.fail: Exception | None = None

        def load(_: Path) -> Any:
            self.loads += 1
            if self.fail:
                raise self.fail
            return painter

        self._load = load
        self.trials: dict[str, str] = {}  # version that is tried, by alias
        self.follower = self.replica(self.switched)

    def replica(self, switched: list[Served]) -> Follower:
        """A follower of its own."""

        def trial(alias: str, served: Served | None) -> None:
            self.trials.pop(alias, None)
            if served:
                self.trials[alias] = served.version

        return Follower(
            f"sqlite:///{self.db}", "x", "atelier",
            load=self._load, switch=switched.append, metrics=self.metrics, keys=Keys(self.folder), retry_s=0.0,
            policy=policy_digest(Release()), aliases=(CHALLENGER, SHADOW), trial=trial,
        )  # fmt: skip

    def release(self, name: str, **tags: str) -> Artifact:
        if not self.db.exists():
            shutil.copy(self._fresh, self.db)
        artifact = self.model(name)
        self.gate.release(artifact, **tags)
        return artifact

    def model(self, name: str) -> Artifact:
        draft = self.store.draft("model", {}, {"name": name})
        (draft.dir / "model_index.json").write_text("{}")
        (draft.dir / "weights.safetensors").write_text(name)
        return draft.commit(Outcome())

    @property
    def gate(self) -> Any:
        return self._gate(f"sqlite:///{self.db}", self.folder)

    def served(self) -> list[str]:
        self.follower.check()
        return [served.version for served in self.switched]


@pytest.fixture
def world(tmp_path: Path, empty_registry: Path, painter: Any, gate: Any) -> World:
    return World(tmp_path, empty_registry, painter, gate)


def test_waits_for_a_first_champion_without_making_a_registry(world: World) -> None:
    assert world.served() == [] and world.follower.state.registry_error is None
    assert not world.db.exists()
    artifact = world.release("one")
    assert world.served() == ["1"] and world.switched[0].digest == artifact.digest
    assert world.served() == ["1"] and world.loads == 1  # not loaded again


def test_a_new_champion_and_a_rollback_are_followed(world: World) -> None:
    world.release("one")
    world.served()
    world.release("two")
    assert world.served() == ["1", "2"]
    world.gate.promote(1)
    assert world.served() == ["1", "2", "1"]


def test_an_alias_moved_by_hand_moves_nothing(world: World) -> None:
    world.release("one")
    world.release("two")
    assert world.served() == ["2"]
    failed = world.gate.register(world.model("three"), "fail")
    tracker = world.gate.tracker
    for version, why in ((failed.version, "carries no signature"), (1, "moved by hand to version 1")):
        tracker.set_alias("atelier", CHAMPION, version)
        assert world.served() == ["2"] and why in (world.follower.state.refused_why or "")
    tracker.set_alias("atelier", CHAMPION, 2)
    assert world.served() == ["2"] and world.follower.state.refused is None
    assert b"atelier_refused_models_total 2.0" in world.metrics.text()


def test_a_replayed_record_and_a_stale_policy_are_refused(world: World, gate: Any) -> None:
    one = world.gate.release(world.model("one"))
    world.served()
    failed = world.gate.register(world.model("two"), "fail", **{k: one.tags[k] for k in ("gate",)})
    world.gate.promote(failed.version)
    assert world.served() == ["1"] and "about another model" in (world.follower.state.refused_why or "")
    lax = gate(f"sqlite:///{world.db}", world.folder, policy=Release(max_regression=0.5))
    lax.release(world.model("three"))
    assert world.served() == ["1"] and "another policy" in (world.follower.state.refused_why or "")


def test_a_server_without_the_key_serves_nothing(world: World) -> None:
    world.release("one")
    (world.folder / KEY_FILE).unlink()
    assert world.served() == [] and "not known here" in (world.follower.state.refused_why or "")


def test_a_forced_model_is_served_and_shown(world: World) -> None:
    failed = world.gate.register(world.model("one"), "fail")
    world.gate.promote(failed.version, forced=True)
    assert world.served() == ["1"] and world.follower.state.forced == "a test"
    assert b"atelier_model_forced 1.0" in world.metrics.text()
    world.release("two")
    assert world.served() == ["1", "2"] and world.follower.state.forced is None
    assert b"atelier_model_forced 0.0" in world.metrics.text()


@pytest.mark.parametrize("damage", ["byte", "missing", "manifest", "tag", "load", "draw"])
def test_a_champion_that_is_not_whole_is_refused_loudly(
    world: World, damage: str, caplog: pytest.LogCaptureFixture, painter: Any
) -> None:
    world.release("one")
    world.served()
    tags = {"model_digest": "0" * 64} if damage == "tag" else {}
    folder = Path(world.release("two", **tags).url)
    if damage == "byte":
        (folder / "weights.safetensors").write_text("owt")
    elif damage == "missing":
        (folder / "weights.safetensors").unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"sha256":"', '"sha256":"0')
        )
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-40])
    elif damage == "load":
        world.fail = RuntimeError("out of memory")
    elif damage == "draw":
        painter.generate = None
    assert world.served() == ["1"]
    state = world.follower.state
    assert (state.served, state.refused, state.loading) == ("1", "2", None) and state.refused_why
    assert b"atelier_refused_models_total 1.0" in world.metrics.text()
    if damage == "load":  # well again: taken at the next try
        world.fail = None
        assert world.served() == ["1", "2"] and world.follower.state.refused is None


def test_an_edited_manifest_is_noticed(world: World) -> None:
    artifact = world.release("one")
    path = Path(artifact.url) / "manifest.json"
    record = artifact.manifest.files["weights.safetensors"]
    path.write_text(path.read_text().replace(record.sha256, "0" * 64))
    with pytest.raises(ArtifactError, match="changed after"):
        open_artifact(artifact.url)


def test_a_registry_that_is_gone_changes_nothing_and_is_said(world: World) -> None:
    world.release("one")
    world.served()
    world.db.rename(world.folder / "away.db")
    assert world.served() == ["1"]
    assert "gone" in (world.follower.state.registry_error or "") and not world.db.exists()
    assert b"atelier_registry_up 0.0" in world.metrics.text()
    (world.folder / "away.db").rename(world.db)
    assert world.served() == ["1"] and world.follower.state.registry_error is None
    world.release("two")
    assert world.served() == ["1", "2"]


def test_a_server_that_does_not_answer_is_a_registry_error(painter: Any, tmp_path: Path) -> None:
    follower = Follower(
        "http://127.0.0.1:9",
        "x",
        "atelier",
        load=lambda _: painter,
        switch=lambda _: None,
        metrics=Metrics(),
        keys=Keys(tmp_path),
    )
    follower.check()
    assert "127.0.0.1:9" in (follower.state.registry_error or "")


def test_the_model_may_lie_in_a_folder_of_its_artifact(tmp_path: Path) -> None:
    draft = Store(str(tmp_path)).draft("model", {}, {})
    (draft.dir / "inner").mkdir()
    (draft.dir / "inner" / "model_index.json").write_text("{}")
    assert model_folder(draft.commit(Outcome())).name == "inner"
    with pytest.raises(ArtifactError, match="model_index"):
        model_folder(Store(str(tmp_path)).draft("model", {}, {"other": 1}).commit(Outcome()))


def test_the_thread_follows_by_itself(world: World, until: Callable[[Callable[[], object]], None]) -> None:
    world.release("one")
    world.follower._every = 0.02
    world.follower.start()
    assert world.switched  # loaded before start returned
    world.release("two")
    until(lambda: len(world.switched) == 2)
    world.follower.close()


def test_a_challenger_and_a_shadow_are_loaded_beside_the_champion(world: World) -> None:
    world.release("one")
    assert world.served() == ["1"] and world.trials == {}
    passed = world.gate.register(world.model("two"), reasons="improved on known")
    failed = world.gate.register(world.model("three"), "fail")
    tracker = world.gate.tracker
    tracker.set_alias("atelier", CHALLENGER, passed.version)
    tracker.set_alias("atelier", SHADOW, failed.version)
    assert world.served() == ["1"] and world.trials == {"challenger": "2", "shadow": "3"}
    state = world.follower.state
    assert (state.challenger, state.shadow, state.refused) == ("2", "3", None)
    assert world.follower.tags("2")["reasons"] == "improved on known"
    loads = world.loads
    world.gate.promote(2)  # the model that is loaded already becomes champion
    assert world.served() == ["1", "2"] and world.trials == {"shadow": "3"} and world.loads == loads
    tracker.delete_alias("atelier", SHADOW)
    assert world.served() == ["1", "2"] and world.trials == {} and world.follower.state.shadow is None


@pytest.mark.parametrize(
    ("alias", "verdict", "damage", "why"),
    [
        (CHALLENGER, "fail", "", "verdict on version 3 of atelier is fail"),
        (CHALLENGER, "pass", "unsigned", "carries no signature"),
        (SHADOW, "fail", "unsigned", "carries no signature"),
        (SHADOW, "pass", "file", "damaged"),
        (SHADOW, "pass", "weights", "about another model"),
    ],
)
def test_what_the_gate_does_not_vouch_for_is_not_tried(
    world: World, alias: str, verdict: str, damage: str, why: str
) -> None:
    world.release("zero")
    one = world.gate.release(world.model("one"))
    world.served()
    artifact = world.model("two")
    tags = (
        {"gate": {"unsigned": "{}", "weights": one.tags["gate"]}[damage]} if damage in ("unsigned", "weights") else {}
    )
    made = world.gate.register(artifact, verdict, **tags)
    world.gate.tracker.set_alias("atelier", alias, made.version)
    if damage == "file":
        (Path(artifact.url) / "weights.safetensors").write_text("owt")
    before = world.served()
    assert world.served() == before and world.trials == {}
    told = getattr(world.follower.state, f"{alias}_why")
    assert why in told and world.follower.state.refused is None
    world.gate.tracker.delete_alias("atelier", alias)
    world.served()
    assert getattr(world.follower.state, f"{alias}_why") is None


def test_a_champion_that_one_replica_gave_up_is_served_by_none(world: World) -> None:
    world.release("one")
    world.release("two")
    theirs: list[Served] = []
    other = world.replica(theirs)
    world.served()
    other.check()
    assert [s.version for s in theirs] == ["2"] and other.state.served == "2"
    world.follower.drop("2", "1", "3 of its first 4 requests failed")
    state = world.follower.state
    assert (state.served, state.refused, state.dropped_why) == ("1", "2", "3 of its first 4 requests failed")
    assert world.served() == ["2"]  # this one has the other model already
    other.check()
    assert [s.version for s in theirs] == ["2", "1"] and other.state.refused == "2"
    fresh: list[Served] = []  # a replica that starts now does not begin with it
    started = world.replica(fresh)
    started.check()
    assert [s.version for s in fresh] == ["1"] and "first 4" in (started.state.dropped_why or "")
    world.gate.promote(1)  # the registry is rolled back
    other.check()
    assert other.state.served == "1" and other.state.refused is None and other.state.dropped_why is None
    world.gate.promote(2)  # promoted anew, it gets another chance
    other.check()
    assert other.state.served == "2" and other.state.dropped_why is None


def test_a_first_champion_that_was_given_up_is_better_than_none(world: World) -> None:
    world.release("one")
    world.served()
    world.follower._registry.drop(world.gate.tracker.version("atelier", 1), "bad")
    fresh: list[Served] = []
    world.replica(fresh).check()
    assert [s.version for s in fresh] == ["1"]


def test_damaged_notes_change_nothing_and_are_said(world: World) -> None:
    world.release("one")
    world.served()
    (world.folder / "dropped.json").write_text("[")
    world.release("two")
    assert world.served() == ["1"] and "dropped.json" in (world.follower.state.registry_error or "")
    (world.folder / "dropped.json").unlink()
    assert world.served() == ["1", "2"]
