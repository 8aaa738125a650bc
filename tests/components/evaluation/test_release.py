"""The registry follows the gate: versions for all, the alias for those that passed, also after kills."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.contracts.errors import ArtifactError, GateRefused, InputError, RegistryError
from components.contracts.recipe import Recipe
from components.evaluation import registry as registry_module
from components.evaluation.registry import Registry
from components.evaluation.release import (
    champion,
    find,
    force,
    policy_digest,
    read_record,
    release,
    require_champion,
    require_pass,
    rollback,
    versions,
)
from components.evaluation.signing import KEY_FILE
from components.evaluation.vouching import vouched
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.runtime.tracking import Tracker

Judged = Callable[..., tuple[Artifact, Artifact]]


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, to copy: making the tables takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "t")
    return path


@pytest.fixture
def ctx(tmp_path: Path, empty_registry: Path) -> Context:
    recipe = {"name": "release", "run": {"root": str(tmp_path)}, "release": {"min_fidelity": 0.5}}
    made = Context.of(Recipe.model_validate(recipe))
    made.home.mkdir(parents=True)
    shutil.copy(empty_registry, made.home / "mlflow.db")
    return made


def test_the_story_of_four_models(ctx: Context, judged: Judged) -> None:
    assert champion(ctx) is None and versions(ctx) == []
    with pytest.raises(ArtifactError, match=r"has no champion.*atelier run --recipe release"):
        require_champion(ctx)

    # the first one passes its floor
    model1, assessment1 = judged("m1", 450)
    record1 = release(ctx, model1, assessment1)
    require_pass(record1)
    assert find(ctx, model1) == find(ctx, model1, assessment1) == record1
    now = champion(ctx)
    assert now is not None and now[0].version == 1 and now[1].digest == model1.digest
    tags = now[0].tags
    assert tags["verdict"] == "pass" and tags["promoted"] == "true" and tags["record"] == record1.digest
    assert "first model" in tags["reasons"] and now[0].source == model1.url
    assert {"model_digest", "weights", "data", "assessment", "judge", "policy"} <= set(tags)

    # a worse one is registered with its reasons, and the alias stays
    model2, assessment2 = judged("m2", 300)
    record2 = release(ctx, model2, assessment2, assessment1)
    with pytest.raises(GateRefused, match=r"worse than the margin.*champion is unchanged"):
        require_pass(record2)
    assert [v.tags["verdict"] for v in versions(ctx)] == ["pass", "fail"]
    now = champion(ctx)
    assert now is not None and now[0].version == 1

    # a better one takes over
    model3, assessment3 = judged("m3", 490)
    record3 = release(ctx, model3, assessment3, assessment1)
    content = read_record(record3)
    assert (
        content["champion"] == {"model": model1.digest, "assessment": assessment1.digest}
        and content["comparisons"][0]["outcome"] == "improved"
    )
    now = champion(ctx)
    assert now is not None and now[0].version == 3

    # running all of it again changes nothing
    assert release(ctx, model3, assessment3) == record3, "the champion itself: judged already"
    assert release(ctx, model3, assessment3, assessment1) == record3
    assert release(ctx, model1, assessment1) == record1 and find(ctx, model2) is None, "a new champion: a new trial"
    now = champion(ctx)
    assert now is not None and now[0].version == 3 and len(versions(ctx)) == 3

    # a challenger must have been compared with the present champion
    model4, assessment4 = judged("m4", 495)
    for stale in (assessment1, None):
        with pytest.raises(InputError, match="assess the present champion"):
            release(ctx, model4, assessment4, stale)
    assert len(versions(ctx)) == 3

    # rolled back, it is not promoted again by running the stage again
    restored = rollback(ctx, "error rate 0.2")
    assert restored.version == 1 and restored.tags["restored"].endswith("error rate 0.2")
    assert release(ctx, model3, assessment3, assessment1) == record3
    now = champion(ctx)
    assert now is not None and now[0].version == 1
    assert versions(ctx)[2].tags["rolled_back"] == "error rate 0.2"
    with pytest.raises(GateRefused, match="no earlier champion"):
        rollback(ctx, "again")


def test_the_run_shows_metrics_sheet_and_record(ctx: Context, judged: Judged) -> None:
    import mlflow

    model, assessment = judged("m1", 450)
    record = release(ctx, model, assessment)
    client = mlflow.MlflowClient(ctx.registry_uri)
    run = client.get_run(versions(ctx)[0].run_id)
    assert run.data.metrics["known/fidelity"] == 0.9 and run.data.params["assess.steps"] == "16"
    assert run.info.status == "FINISHED"
    names = {f.path for f in client.list_artifacts(run.info.run_id, "release")}
    assert names == {f"release/{name}" for name in ("gate.json", "metrics.json", "record.json", "sheet.png")}
    assert "| known | fidelity | 0.9 |" in client.get_model_version("atelier", "1").description
    assert "created" not in record.path("record.json").read_text(), "no time and no version in the record"


@pytest.mark.parametrize("where", ["log_metrics", "register", "set_alias", "tag_version"])
def test_a_kill_anywhere_is_finished_by_the_same_command(
    ctx: Context, judged: Judged, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from components.runtime import tracking

    model, assessment = judged("m1", 450)
    owner = tracking.Run if where == "log_metrics" else tracking.Tracker
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(owner, where, killed)
        with pytest.raises(KeyboardInterrupt):
            release(ctx, model, assessment)
    record = release(ctx, model, assessment)
    found = versions(ctx)
    assert len(found) == 1 and found[0].tags["promoted"] == "true" and found[0].tags["record"] == record.digest
    client = Registry(ctx).tracker._client
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.status for r in runs] == ["FINISHED"], "the run was gone on with"
    now = champion(ctx)
    assert now is not None and now[0].version == 1


def test_a_failed_challenger_is_judged_anew_by_another_champion(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 480)
    release(ctx, model1, assessment1)
    model2, assessment2 = judged("m2", 420)
    first = release(ctx, model2, assessment2, assessment1)
    assert read_record(first)["verdict"] == "fail"
    model3, assessment3 = judged("m3", 500)
    release(ctx, model3, assessment3, assessment1)
    again = release(ctx, model2, assessment2, assessment3)
    assert again != first and read_record(again)["champion"]["model"] == model3.digest


def test_never_across_judges(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 480)
    release(ctx, model1, assessment1)
    model2, assessment2 = judged("m2", 490, judge="another")
    with pytest.raises(GateRefused, match=r"judge: .* against .*"):
        release(ctx, model2, assessment2, assessment1)
    assert len(versions(ctx)) == 1, "what was never compared is not registered"


def test_an_assessment_of_another_model_is_refused(ctx: Context, judged: Judged) -> None:
    model1, _ = judged("m1", 480)
    _, assessment2 = judged("m2", 490)
    with pytest.raises(InputError, match="does not measure"):
        release(ctx, model1, assessment2)
    with pytest.raises(ArtifactError, match="no release record"):
        require_pass(model1)


def test_a_champion_that_was_not_released_here_is_named(ctx: Context, judged: Judged) -> None:
    tracker = Registry(ctx).tracker
    with tracker.run("by hand") as run:
        tracker.register("atelier", "/elsewhere", run.id, {}, "")
    tracker.set_alias("atelier", registry_module.CHAMPION, 1)
    with pytest.raises(ArtifactError, match="carries no model digest"):
        champion(ctx)


def test_registry_down(ctx: Context, judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recipe = ctx.recipe.model_copy(update={"run": ctx.recipe.run.model_copy(update={"registry": "http://127.0.0.1:9"})})
    down = Context(recipe, ctx.store, ctx.home)
    model, assessment = judged("m1", 450)
    with pytest.raises(RegistryError, match=r"http://127\.0\.0\.1:9 cannot be reached.*Remedy: start the server"):
        release(down, model, assessment)
    assert release(ctx, model, assessment), "and nothing was left in the way"


def test_looking_does_not_make_a_registry(ctx: Context) -> None:
    database = ctx.home / "mlflow.db"
    database.unlink()
    assert champion(ctx) is None and versions(ctx) == []
    assert not database.exists()


def _alias(ctx: Context, version: int) -> None:
    Registry(ctx).tracker.set_alias("atelier", registry_module.CHAMPION, version)


def test_an_alias_moved_by_hand_is_put_back(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 450)
    release(ctx, model1, assessment1)
    model2, assessment2 = judged("m2", 300)
    release(ctx, model2, assessment2, assessment1)
    _alias(ctx, 2)
    assert find(ctx, model1, assessment1) is not None
    now = champion(ctx)
    assert now is not None and now[0].version == 1


def test_force_is_signed_and_shows(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 450)
    release(ctx, model1, assessment1)
    model2, assessment2 = judged("m2", 300)
    record = release(ctx, model2, assessment2, assessment1)
    with pytest.raises(GateRefused, match="needs a reason"):
        force(ctx, " ", record=record)
    with pytest.raises(GateRefused, match="Version 9 of atelier carries no record"):
        force(ctx, "because", 9)
    made = force(ctx, "the fair is tomorrow", record=record)
    now = champion(ctx)
    assert now is not None and now[0].version == made.version == 2
    assert made.tags["forced"] == "fail, forced: the fair is tomorrow"
    said = vouched(made, versions(ctx), Registry(ctx).keys, model2, "any other")
    assert said.forced == "the fair is tomorrow" and said.serial == 2
    assert release(ctx, model1, assessment1) and Registry(ctx).champion().version == 2, "the stage does not undo it"


def test_a_release_from_before_a_lost_key_is_signed_anew(ctx: Context, judged: Judged) -> None:
    model, assessment = judged("m1", 450)
    release(ctx, model, assessment)
    (ctx.home / KEY_FILE).unlink()
    registry = Registry(ctx)
    registry.keys.sign({})  # a new key
    with pytest.raises(GateRefused, match="not known here"):
        vouched(registry.champion(), registry.versions(), registry.keys, model)
    release(ctx, model, assessment)
    policy = policy_digest(ctx.recipe.release)
    assert vouched(registry.champion(), registry.versions(), registry.keys, model, policy).serial == 1
