"""The compiled pipeline, loaded back from its YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.contracts.errors import RecipeError
from components.runtime.recipes import load_recipe
from pipelines.end_to_end import STAGES
from pipelines.kubeflow import CLAIM, IMAGE, MOUNT, compile_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    path = tmp_path_factory.mktemp("kfp") / "atelier.yaml"
    compile_pipeline("demo", path, overrides=("train.denoiser.images=1000",))
    spec, platform = yaml.safe_load_all(path.read_text())
    return spec, platform


def test_stages_run_in_order_one_after_the_other(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert set(tasks) == set(STAGES)
    for before, stage in zip((None, *STAGES), STAGES, strict=False):
        assert tasks[stage].get("dependentTasks", []) == ([before] if before else [])
        assert not tasks[stage].get("cachingOptions")


def test_each_container_runs_the_stage_as_on_a_laptop(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    executors = documents[0]["deploymentSpec"]["executors"]
    assert len(executors) == len(STAGES)
    for stage in STAGES:
        container = executors[f"exec-{stage}"]["container"]
        assert container["image"] == IMAGE
        script, arguments = container["command"][1], container["args"]
        assert container["command"][0] == "python" and script == f"pipelines/{stage}.py"
        assert (ROOT / script).is_file()
        assert arguments[:2] == ["--recipe", "demo"] and set(arguments[2::2]) == {"--set"}
        recipe = load_recipe("demo", arguments[3::2])
        assert recipe.run.root == f"{MOUNT}/runs" and recipe.run.registry
        assert recipe.train.denoiser.images == 1000


def test_every_stage_mounts_the_claim_that_infra_makes(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounts = [executor["pvcMount"] for executor in executors.values()]
    assert len(mounts) == len(STAGES)
    assert all(mount[0]["constant"] == CLAIM and mount[0]["mountPath"] == MOUNT for mount in mounts)
    claim = yaml.safe_load((ROOT / "infra" / "storage" / "claim.yaml").read_text())
    assert claim["kind"] == "PersistentVolumeClaim" and claim["metadata"]["name"] == CLAIM


def test_a_wrong_recipe_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'images'"):
        compile_pipeline("demo", tmp_path / "x.yaml", overrides=("train.denoiser.imags=1",))
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "pipelines/kubeflow.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    done = call("--recipe", "demo", "--output", str(tmp_path / "p.yaml"), "--image", "registry.example/atelier:7")
    assert done.returncode == 0, done.stderr
    assert "collect -> prepare -> train -> assess -> release" in done.stdout
    assert "registry.example/atelier:7" in (tmp_path / "p.yaml").read_text()
    wrong = call("--output", str(tmp_path / "no" / "p.yaml"))
    assert wrong.returncode == 2 and "Remedy: choose another --output" in wrong.stderr
    assert "Traceback" not in wrong.stderr
