"""What MLflow shows of a pass of the pipeline."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.contracts.errors import RegistryError
from components.contracts.recipe import Recipe
from components.runtime.recording import recorded
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome
from components.runtime.tracking import Tracker


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, to copy."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "another")
    return path


@pytest.fixture
def ctx(tmp_path: Path, database: Path) -> Context:
    made = Context.of(Recipe.model_validate({"name": "t", "run": {"root": str(tmp_path)}}))
    made.home.mkdir(parents=True)
    shutil.copy(database, made.home / "mlflow.db")
    return made


def stage(
    ctx: Context, kind: str, inputs: dict[str, Artifact] | None = None, error: BaseException | None = None
) -> Artifact:
    def build(draft: Draft) -> Outcome:
        if error:
            raise error
        (draft.dir / "x").write_text(kind)
        return Outcome(counts={"rows": 7}, dropped={"too small": 2})

    return run_stage(ctx, kind, inputs or {}, {"size": {"width": 8}, "levels": (1, 2)}, build, f"the {kind}")


def runs(ctx: Context) -> dict[str, Any]:
    """All runs by name."""
    client = Tracker(ctx.registry_uri, "t")._client
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len({r.info.run_name for r in found}) == len(found)
    return {r.info.run_name: r for r in found}


def test_stages_lie_below_their_pass(ctx: Context) -> None:
    with recorded(ctx):
        with recorded(ctx):  # a stage calls the ones before it
            collection = stage(ctx, "collection")
        dataset = stage(ctx, "dataset", {"collection_0": collection})
        ctx.recorder.conclude("**pass**", {"verdict": "pass"}, {"known/fidelity": 0.9})
    assert ctx.recorder is None
    found = runs(ctx)
    parent, child = found["run t"], found["the dataset"]
    assert set(found) == {"run t", "the collection", "the dataset"}
    assert {r.info.status for r in found.values()} == {"FINISHED"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["digest"] == dataset.digest and child.data.tags["artifact_url"] == dataset.url
    assert child.data.metrics["rows"] == 7 and child.data.metrics["dropped/too small"] == 2
    assert child.data.params == {"config.size.width": "8", "config.levels": "[1, 2]"}
    assert parent.data.params["train.denoiser.family"] == "unet" and "run.root" not in parent.data.params
    assert parent.data.metrics == {"known/fidelity": 0.9} and parent.info.start_time <= child.info.start_time + 1000
    assert parent.data.tags["mlflow.note.content"] == "**pass**" and parent.data.tags["verdict"] == "pass"
    (data,) = child.inputs.dataset_inputs
    assert data.dataset.name == "collection" and data.dataset.digest == collection.digest[:32]
    assert json.loads(data.dataset.source) == {"uri": collection.url} and json.loads(data.dataset.profile) == {
        "rows": 7
    }
    assert data.tags[0].value == "collection_0"
    import mlflow.data

    assert mlflow.data.get_source(data.dataset).uri == collection.url, "as mlflow.data reads it"


def test_again_changes_nothing_and_what_was_done_before_is_recorded_later(ctx: Context) -> None:
    collection = stage(ctx, "collection")  # by a command that records nothing
    with recorded(ctx):
        stage(ctx, "collection")
    before = runs(ctx)
    late = before["the collection"]
    assert late.data.tags["digest"] == collection.digest
    assert abs(late.info.end_time / 1000 - os.stat(collection.path("x")).st_mtime) < 5
    with recorded(ctx):
        stage(ctx, "collection")
    after = runs(ctx)
    assert {n: (r.info.end_time, r.data.metrics) for n, r in after.items()} == {
        n: (r.info.end_time, r.data.metrics) for n, r in before.items()
    }
    with recorded(ctx):  # the next command of the same recipe goes on below the same parent
        stage(ctx, "dataset", {"collection_0": collection})
    assert runs(ctx)["the dataset"].data.tags["mlflow.parentRunId"] == after["run t"].info.run_id
    with recorded(ctx, "retrain", champion="abc"):
        stage(ctx, "model")
    found = runs(ctx)
    assert found["retrain t"].data.tags["champion"] == "abc"
    assert found["the model"].data.tags["mlflow.parentRunId"] == found["retrain t"].info.run_id


def test_failures_and_stops_show_and_are_gone_on_with(ctx: Context) -> None:
    with pytest.raises(ZeroDivisionError), recorded(ctx):
        stage(ctx, "dataset", error=ZeroDivisionError("by zero"))
    found = runs(ctx)
    assert [r.info.status for r in found.values()] == ["FAILED"] * 2
    assert found["the dataset"].data.tags["error"] == "by zero"
    with pytest.raises(KeyboardInterrupt), recorded(ctx):
        stage(ctx, "dataset", error=KeyboardInterrupt())
    assert {r.info.status for r in runs(ctx).values()} == {"KILLED"}
    with recorded(ctx):
        stage(ctx, "dataset")
    found = runs(ctx)
    assert {r.info.status for r in found.values()} == {"FINISHED"} and len(found) == 2
    assert found["the dataset"].data.params["config.size.width"] == "8"


def test_a_training_that_logs_by_itself_has_one_run(ctx: Context) -> None:
    """As train_task does: its run is live below the parent, and the stage completes it."""

    def build(draft: Draft) -> Outcome:
        tracker = Tracker(ctx.registry_uri, "t", ctx.home / "mlruns")
        assert ctx.recorder
        with tracker.run("train x", ctx.recorder.parent(), {"artifact": draft.identity}) as run:
            run.log_metrics({"loss": 0.5}, step=64)
            run.log_params({"config": draft.config})
        (draft.dir / "x").write_text("x")
        return Outcome(counts={"images": 64})

    with recorded(ctx):
        made = run_stage(ctx, "denoiser", {}, {"width": 8}, build)
    found = runs(ctx)
    assert set(found) == {"run t", "train x"}
    assert found["train x"].data.metrics == {
        "loss": 0.5,
        "images": 64,
        "seconds": made.manifest.circumstance["seconds"],
    }
    assert found["train x"].data.tags["digest"] == made.digest


def test_a_registry_that_goes_away_stops_nothing_and_one_that_is_away_does(
    ctx: Context, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    whole = (ctx.home / "mlflow.db").read_bytes()
    with recorded(ctx):
        stage(ctx, "collection")
        (ctx.home / "mlflow.db").write_bytes(b"not a database " * 500)
        made = [stage(ctx, "dataset"), stage(ctx, "model")]
    said = capsys.readouterr().err
    assert said.count("the same command records it when MLflow is back") == 1
    assert all(artifact.path("x").exists() for artifact in made)
    with pytest.raises(RegistryError), recorded(ctx):
        pytest.fail("nothing is begun")
    (ctx.home / "mlflow.db").write_bytes(whole)
    with recorded(ctx):
        stage(ctx, "model")
    assert "the model" in runs(ctx)


def test_recorded_numbers_are_logged_once(ctx: Context, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>")
    for _ in range(2):
        with recorded(ctx):
            made = stage(ctx, "assessment")
            ctx.recorder.show(made, [tmp_path / "page.html"], {"known/fidelity": 0.5}, "a note")
    client = Tracker(ctx.registry_uri, "t")._client
    run = runs(ctx)["the assessment"]
    assert len(client.get_metric_history(run.info.run_id, "known/fidelity")) == 1
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["page.html"]
    assert run.data.tags["mlflow.note.content"] == "a note"
