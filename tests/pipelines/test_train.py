"""`atelier train --preflight`: a recipe looked at without data, and refused in one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.contracts.errors import TrainingError
from components.contracts.recipe import Recipe
from pipelines.train import look

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "text_encoder": {"width": 32, "layers": 1, "image_layers": 1, "heads": 2, "batch_size": 32},
    "autoencoder": {"channels": [8, 16], "norm_groups": 4, "batch_size": 16},
    "denoiser": {"channels": [16, 32], "norm_groups": 4, "heads": 2, "batch_size": 32},
}


def test_preflight_prints_a_line_a_training_and_refuses_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"name": "x", "prepare": {"image_size": 16}, "train": SMALL}
    look(Recipe.model_validate(recipe))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " M" in line] == ["text_encoder", "autoencoder", "denoiser"]
    tight = Recipe.model_validate({**recipe, "run": {"gpus_per_worker": 1, "gpu_memory_gb": 1e-5}})
    with pytest.raises(TrainingError, match="needs about"):
        look(tight)
    assert "NO, 0.0 GB" in capsys.readouterr().out  # the table comes first


@pytest.mark.integration
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_collected(tmp_path: Path) -> None:
    for command in ("run", "train"):
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", command, "--set", "train.denoiser.caption_dropout=0",
             "--set", f"run.root={tmp_path}"],
            cwd=ROOT, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 6 and "caption_dropout is 0" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not list(tmp_path.rglob("manifest.json"))
