"""`atelier rollout` on a registry with a champion, one that passed and one that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.contracts.errors import GateRefused, InputError
from components.contracts.recipe import Recipe
from components.evaluation.dropping import Drops
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome
from pipelines.cli import app
from tests.serving.conftest import Gate


def test_what_is_tried_is_shown_and_changed(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "tried", "serve": {"canary_share": 0.25}, "run": {"root": str(tmp_path / "runs")}}
    )
    path = tmp_path / "tried.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json")))  # JSON is YAML
    ctx = Context.of(recipe)

    def rollout(*options: str) -> str:
        done = CliRunner().invoke(app, ["rollout", "--recipe", str(path), *options], env={"COLUMNS": "200"})
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0
        return done.output

    rollout()
    assert not (ctx.home / "mlflow.db").exists()  # looking makes nothing

    def model(name: str) -> Artifact:
        draft = ctx.store.draft("model", {}, {"name": name})
        (draft.dir / "weights.safetensors").write_text(name)
        return draft.commit(Outcome())

    gate = Gate(ctx.registry_uri, ctx.home, "tried", recipe.release)
    first = gate.register(model("one"))
    gate.promote(first.version)
    against = model("one").digest
    for name, verdict in (("two", "pass"), ("three", "fail")):
        made = gate.register(model(name), verdict, against=against, reasons=f"{name} was compared\nand so on")
        gate.tracker.tag_version("atelier", made.version, {"verdict": verdict})
    said = rollout("--challenger", "2", "--shadow", "3")
    rows = [line.split() for line in said.splitlines() if line.strip()[:1].isdigit()]
    assert rows[0][:2] == ["1", "champion"] and rows[1][:3] == ["2", "challenger", "25%"]
    assert rows[2][:2] == ["3", "shadow"] and "three was compared" in said and "and so on" not in said
    with pytest.raises(GateRefused, match="--shadow 3"):
        rollout("--challenger", "3")
    with pytest.raises(InputError, match="do not go together"):
        rollout("--promote", "--stop")
    rows = [line.split() for line in rollout("--promote").splitlines() if line.strip()[:1].isdigit()]
    assert rows[1][:2] == ["2", "champion"] and rows[0] == ["1"]
    Drops(ctx.home, gate.keys).add(gate.tracker.version("atelier", 2), "3 of its first 4 requests failed")
    assert "given up: 3 of its first 4" in rollout("--stop") and "shadow" not in rollout()
