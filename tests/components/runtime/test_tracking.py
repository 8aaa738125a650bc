"""MLflow behind one small class: on a SQLite file, on a real server, and when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.contracts.errors import RegistryError
from components.runtime.cluster import quiet_environment
from components.runtime.tracking import Loadable, Tracker
from tests.ports import unused_port


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracker(f"sqlite:///{folder}/deep/mlflow.db", "runs", folder / "files")


def test_runs(tracker: Tracker, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("hello")
    with tracker.run("parent") as parent, tracker.run("child", parent=parent.id, tags={"kind": "x"}) as run:
        run.log_params({"a": {"b": 1, "c": "x" * 9000}, "many": {str(i): i for i in range(250)}})
        run.log_metrics({"loss": 0.5, "known/fidelity.first colour": 0.9}, step=64)
        run.log_artifact(file, "notes")
        run.set_tags({"later": "yes"})
    found = tracker._client.get_run(run.id)
    assert found.data.params["a.b"] == "1" and len(found.data.params) == 252
    assert found.data.metrics == {"loss": 0.5, "known/fidelity.first colour": 0.9}
    assert found.data.tags["mlflow.parentRunId"] == parent.id and found.data.tags["later"] == "yes"
    assert found.info.status == "FINISHED"
    assert [f.path for f in tracker._client.list_artifacts(run.id, "notes")] == ["notes/note.txt"]


def test_a_failed_run_says_so_and_can_be_gone_on_with(tracker: Tracker) -> None:
    with pytest.raises(ZeroDivisionError), tracker.run("fails", tags={"key": "k1"}):
        raise ZeroDivisionError
    begun = tracker.find_run({"key": "k1"})
    assert begun and tracker._client.get_run(begun).info.status == "FAILED"
    with tracker.run("fails", resume=begun) as run:
        run.log_metrics({"x": 1})
    assert run.id == begun and tracker._client.get_run(begun).info.status == "FINISHED"
    assert tracker.find_run({"key": "nobody has this"}) is None


def test_versions_and_aliases(tracker: Tracker) -> None:
    assert tracker.versions("m") == [] and tracker.alias("m", "champion") is None
    with tracker.run("r") as run:
        made = tracker.register("m", "/store/model/1", run.id, {"k": "v", "long": "x" * 9000}, "words")
    assert (made.version, made.source, made.tags["k"], made.aliases) == (1, "/store/model/1", "v", ())
    for number in range(2, 12):
        assert tracker.register("m", f"s3://b/{number}", run.id, {}, "").source == f"s3://b/{number}"
    assert [v.version for v in tracker.versions("m")] == list(range(1, 12)), "by number, not by letter"
    assert tracker.alias("m", "champion") is None
    tracker.set_alias("m", "champion", 10)
    tracker.set_alias("m", "champion", 2)
    tracker.tag_version("m", 2, {"why": "better"})
    now = tracker.alias("m", "champion")
    assert now is not None and now.version == 2 and now.tags["why"] == "better" and now.aliases == ("champion",)
    assert tracker.versions("m")[1].aliases == ("champion",)
    with pytest.raises(RegistryError, match="did not do as asked"):
        tracker.set_alias("m", "champion", 99)


def test_opened_again_it_is_the_same(tracker: Tracker) -> None:
    with tracker.run("again", tags={"key": "again"}) as run:
        pass
    assert Tracker(tracker.uri, "runs").find_run({"key": "again"}) == run.id
    assert Tracker(tracker.uri, "another").find_run({"key": "again"}) is None


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "broken.db").write_text("not a database " * 500)
    (tmp_path / "file").write_text("")
    for uri, problem in (
        ("http://127.0.0.1:9", "cannot be reached"),
        (f"sqlite:///{tmp_path}/broken.db", "not a database"),
        (f"sqlite:///{tmp_path}/file/mlflow.db", "did not do as asked"),
    ):
        with pytest.raises(
            RegistryError, match=f"{problem}.*Remedy: start the server or correct run.registry"
        ) as caught:
            Tracker(uri, "x")
        assert uri in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on loopback."""
    folder = tmp_path_factory.mktemp("server")
    port = unused_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | quiet_environment(), start_new_session=True
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 600
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.integration
@pytest.mark.slow
def test_a_real_server_by_url(server: str, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text("{}")
    tracker = Tracker(server, "runs", tmp_path / "ignored")
    with tracker.run("r", tags={"record": "1"}) as run:
        run.log_params({"a": 1})
        run.log_metrics({"x": 1.0})
        run.log_artifact(file, "release")
        # a local path: the server refuses it as a source, the version still knows it
        made = tracker.register("m", str(tmp_path / "model"), run.id, {"k": "v"}, "words")
        bucket = tracker.register("m", "s3://bucket/model", run.id, {}, "")
    assert made.source == str(tmp_path / "model") and bucket.source == "s3://bucket/model"
    tracker.set_alias("m", "champion", made.version)
    now = tracker.alias("m", "champion")
    assert now is not None and now.source == made.source and tracker.find_run({"record": "1"}) == run.id
    assert [v.version for v in tracker.versions("m")] == [1, 2]
    assert tracker.alias("m", "nobody") is None and tracker.alias("unknown", "champion") is None
    opened_by_mlflow(tracker, tmp_path)


def opened_by_mlflow(tracker: Tracker, tmp_path: Path) -> None:
    """A version that carries its code is taken by the server, and is loaded from what the server gives."""
    import mlflow
    import pandas

    code = tmp_path / "code" / "echoing"
    code.mkdir(parents=True)
    lines = ("import json", "class Echo:", "    def __init__(self, word): self.word = word",
             "    def predict(self, frame, params=None):",
             "        return [f'{self.word} {p} {params}' for p in frame['prompt']]",
             "def _load_pyfunc(path): return Echo(json.load(open(path))['word'])")  # fmt: skip
    (code / "__init__.py").write_text("\n".join(lines))
    echo = Loadable(
        "echoing", ("word.json", {"word": "hello"}), code, ["pandas"], {"prompt": "string", "seed": "long?"},
        {"text": "string"}, {"prompt": "x", "seed": 0}, {"steps": 4},
    )  # fmt: skip
    with tracker.run("with code") as run:
        made = tracker.register("m", str(tmp_path / "model"), run.id, {}, "", echo)
    assert made.source == str(tmp_path / "model")
    try:
        mlflow.set_tracking_uri(tracker.uri)
        model = mlflow.pyfunc.load_model(f"models:/m/{made.version}")
        said = model.predict(pandas.DataFrame({"prompt": ["a"]}), params={"steps": 9})
    finally:
        mlflow.set_tracking_uri(None)
    assert list(said) == ["hello a {'steps': 9}"]
    assert model.metadata.signature.inputs.required_input_names() == ["prompt"]
    (logged,) = tracker._client.get_run(run.id).outputs.model_outputs
    assert tracker._client.get_logged_model(logged.model_id).status == "READY"
