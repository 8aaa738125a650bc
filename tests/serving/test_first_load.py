"""A champion whose loading kills the process: one replica dies of it, and one more, and then nobody."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluation.signing import Keys
from components.runtime.storage import Outcome, Store
from components.runtime.tracking import Tracker
from serving.engine import Served
from serving.first_load import MOST_DEATHS, NAME, FirstLoad
from serving.follower import Follower
from serving.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]


def test_one_replica_goes_first_and_the_others_follow(tmp_path: Path) -> None:
    living = {"a", "b"}
    a, b = (FirstLoad(tmp_path, name, lambda: living) for name in "ab")
    assert a.begin("v/2/1", serves=True) == 0
    assert b.begin("v/2/1", serves=True) is None and b.begin("v/2/1", serves=False) is None
    a.end("v/2/1", done=True)
    assert b.begin("v/2/1", serves=True) == 0
    assert a.begin("v/3/2", serves=True) == 0  # another promotion: a new start
    a.end("v/3/2", done=False)  # an error, which was caught: anybody may try
    assert b.begin("v/3/2", serves=True) == 0


def test_who_serves_does_not_try_what_somebody_died_of(tmp_path: Path) -> None:
    living = {"a", "b"}
    names = {name: FirstLoad(tmp_path, name, lambda: living) for name in ("a", "b", "c", "d")}
    assert names["a"].begin("v", serves=True) == 0
    living.remove("a")
    assert names["b"].begin("v", serves=True) == -1  # it stays as it is
    assert names["c"].begin("v", serves=False) == 1  # in the place of the dead one
    assert names["d"].begin("v", serves=False) == MOST_DEATHS  # "c" is not among the living
    assert names["b"].begin("v", serves=True) == MOST_DEATHS


def test_the_second_try_may_go_well(tmp_path: Path) -> None:
    living = {"b", "c"}
    dead, b, c = (FirstLoad(tmp_path, name, lambda: living) for name in "abc")
    dead.begin("v", serves=True)
    assert c.begin("v", serves=False) == 1
    c.end("v", done=True)
    assert b.begin("v", serves=True) == 0
    (tmp_path / NAME).write_text("{")
    assert b.begin("v", serves=True) == 0  # a damaged note is begun anew


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=12))
def test_never_two_at_once_and_never_more_deaths_than_allowed(
    tmp_path_factory: Any, steps: list[tuple[str, bool]]
) -> None:
    """Replicas begin in any order and die of it; those that died come again under another name."""
    folder = tmp_path_factory.mktemp("first")
    died: set[str] = set()
    for number, (name, serves) in enumerate(steps):
        replica = f"{name}{number}"
        found = FirstLoad(folder, replica, lambda: set()).begin("v", serves)
        if found is not None and 0 <= found < MOST_DEATHS:
            died.add(replica)
    assert len(died) <= MOST_DEATHS


KILLED = """
import os, signal, sys
from pathlib import Path
from components.evaluation.signing import Keys
from serving.first_load import FirstLoad
from serving.follower import Follower
from serving.metrics import Metrics
home = Path(sys.argv[1])
Follower(
    f"sqlite:///{home / 'mlflow.db'}", "x", "atelier", load=lambda _: os.kill(os.getpid(), signal.SIGKILL),
    switch=print, metrics=Metrics(), keys=Keys(home), first=FirstLoad(home, sys.argv[2], set),
).check()
"""


@pytest.mark.integration
def test_a_champion_that_kills_who_loads_it_is_given_up(tmp_path: Path, gate: Any, painter: Any) -> None:
    uri, store = f"sqlite:///{tmp_path / 'mlflow.db'}", Store(str(tmp_path / "store"))
    Tracker(uri, "x")
    for name in ("one", "two"):
        draft = store.draft("model", {}, {"name": name})
        (draft.dir / "model_index.json").write_text("{}")
        (draft.dir / "weights.safetensors").write_text(name)
        gate(uri, tmp_path).release(draft.commit(Outcome()))
    for replica in ("first", "second"):
        died = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), replica],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert json.loads((tmp_path / NAME).read_text())["by"] == replica
    switched: list[Served] = []
    metrics = Metrics()
    third = Follower(
        uri, "x", "atelier", load=lambda _: painter, switch=switched.append, metrics=metrics, keys=Keys(tmp_path),
        first=FirstLoad(tmp_path, "third", set),
    )  # fmt: skip
    third.check()
    assert [served.version for served in switched] == ["1"]
    assert third.state.refused == "2" and "2 replicas died" in (third.state.dropped_why or "")
    assert b"atelier_dropped_models_total 1.0" in metrics.text()
    shutil.rmtree(tmp_path / "store")


def test_a_replica_that_starts_waits_for_the_one_that_loads_first(
    tmp_path: Path, gate: Any, painter: Any, until: Any
) -> None:
    uri, store = f"sqlite:///{tmp_path / 'mlflow.db'}", Store(str(tmp_path / "store"))
    draft = store.draft("model", {}, {})
    (draft.dir / "model_index.json").write_text("{}")
    (draft.dir / "weights.safetensors").write_text("w")
    gate(uri, tmp_path).release(draft.commit(Outcome()))
    go, loading = threading.Event(), threading.Event()

    def slow(_: Path) -> Any:
        loading.set()
        assert go.wait(30)
        return painter

    served: dict[str, list[Served]] = {"a": [], "b": []}
    followers = [
        Follower(
            uri, "x", "atelier", load=slow if name == "a" else lambda _: painter, switch=served[name].append,
            metrics=Metrics(), keys=Keys(tmp_path), first=FirstLoad(tmp_path, name, lambda: {"a", "b"}),
        )
        for name in "ab"
    ]  # fmt: skip
    starts = [threading.Thread(target=follower.start) for follower in followers]
    starts[0].start()
    assert loading.wait(30)
    starts[1].start()
    until(lambda: followers[1]._later)
    assert not served["b"] and starts[1].is_alive()
    go.set()
    for start in starts:
        start.join(30)
    assert len(served["a"]) == len(served["b"]) == 1  # both have it when start returns
    for follower in followers:
        follower.close()
