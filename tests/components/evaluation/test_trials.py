"""Challengers and shadows in a real registry: named, refused, promoted, ended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.contracts.errors import ArtifactError, GateRefused
from components.contracts.recipe import Recipe, Run
from components.evaluation.dropping import NAME, Drops
from components.evaluation.registry import CHALLENGER, SHADOW, Registry, can_roll_back
from components.evaluation.release import champion, force, release, rollback, versions
from components.evaluation.trials import end_trials, promote_challenger, trials, try_out
from components.evaluation.vouching import GATE, tried
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.runtime.tracking import Tracker

Judged = Callable[..., tuple[Artifact, Artifact]]


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "t")
    return path


@pytest.fixture
def ctx(tmp_path: Path, empty_registry: Path) -> Context:
    """A recipe whose passing models become challengers."""
    recipe = {"name": "trials", "release": {"min_fidelity": 0.5}}
    run = {"root": str(tmp_path), "release_to": "challenger"}
    made = Context.of(Recipe.model_validate({**recipe, "run": run}))
    made.home.mkdir(parents=True)
    shutil.copy(empty_registry, made.home / "mlflow.db")
    return made


def served(ctx: Context) -> int:
    found = champion(ctx)
    assert found is not None
    return found[0].version


def test_a_pass_becomes_challenger_and_then_champion(ctx: Context, judged: Judged) -> None:
    assert trials(ctx) == {} and not can_roll_back(ctx)
    with pytest.raises(GateRefused, match="no challenger"):
        promote_challenger(ctx)
    model1, assessment1 = judged("m1", 450)
    release(ctx, model1, assessment1)
    assert served(ctx) == 1 and trials(ctx) == {}  # the first one has nobody to challenge
    model2, assessment2 = judged("m2", 490)
    record = release(ctx, model2, assessment2, assessment1)
    assert served(ctx) == 1 and {a: v.version for a, v in trials(ctx).items()} == {CHALLENGER: 2}
    assert release(ctx, model2, assessment2, assessment1) == record and served(ctx) == 1
    assert promote_challenger(ctx).version == 2
    assert served(ctx) == 2 and trials(ctx) == {} and can_roll_back(ctx)
    assert rollback(ctx, "errors").version == 1 and not can_roll_back(ctx)


def test_the_same_command_without_the_setting_promotes_it(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 450)
    release(ctx, model1, assessment1)
    model2, assessment2 = judged("m2", 490)
    release(ctx, model2, assessment2, assessment1)
    ctx.recipe = ctx.recipe.model_copy(update={"run": Run(root=ctx.recipe.run.root)})
    release(ctx, model2, assessment2, assessment1)
    assert served(ctx) == 2


def test_who_may_be_shown_and_who_only_compared(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 450)
    release(ctx, model1, assessment1)
    model2, assessment2 = judged("m2", 300)
    release(ctx, model2, assessment2, assessment1)
    with pytest.raises(GateRefused, match="--shadow 2"):
        try_out(ctx, 2)
    try_out(ctx, 2, SHADOW)
    assert trials(ctx)[SHADOW].version == 2
    keys, failed = Registry(ctx).keys, versions(ctx)[1]
    assert tried(failed, keys, model2, shown=False).verdict == "fail"
    with pytest.raises(GateRefused, match="verdict on version 2 of atelier is fail"):
        tried(failed, keys, model2, shown=True)
    force(ctx, "we want it", 2)
    try_out(ctx, 2)  # forced once, it may be shown
    assert tried(versions(ctx)[1], keys, model2, shown=True).forced == "we want it"
    with pytest.raises(GateRefused, match="did not pass the gate"):
        promote_challenger(ctx)
    end_trials(ctx)
    assert trials(ctx) == {}
    with pytest.raises(GateRefused, match="no record that this gate signed"):
        try_out(ctx, 9)
    Registry(ctx).tracker.tag_version("atelier", 1, {GATE: "{}"})
    with pytest.raises(GateRefused, match="no record that this gate signed"):
        try_out(ctx, 1, SHADOW)


def test_a_challenger_of_another_champion_is_judged_anew(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 450)
    release(ctx, model1, assessment1)
    model2, assessment2 = judged("m2", 490)
    release(ctx, model2, assessment2, assessment1)
    model3, assessment3 = judged("m3", 495)
    release(ctx, model3, assessment3, assessment1)
    force(ctx, "now", 3)
    try_out(ctx, 2)
    with pytest.raises(GateRefused, match="compared with another champion"):
        promote_challenger(ctx)


def test_a_drop_is_of_one_promotion(ctx: Context, judged: Judged) -> None:
    model1, assessment1 = judged("m1", 450)
    release(ctx, model1, assessment1)
    drops = Drops(ctx.home, Registry(ctx).keys)
    first = versions(ctx)[0]
    assert drops.why(first) is None
    drops.add(first, "it failed")
    assert drops.why(first) == "it failed" == Drops(ctx.home, Registry(ctx).keys).why(first)
    force(ctx, "again", 1)
    assert drops.why(versions(ctx)[0]) is None
    (ctx.home / NAME).write_text('{"a": 1}')
    with pytest.raises(ArtifactError, match=NAME):
        drops.why(first)
