"""Training without Ray: on one process, and on the ranks of torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from components.data.world import WorldSpec
from components.runtime.storage import Store
from components.training.main import main
from tests.components.training.datasets import make_dataset

ROOT = Path(__file__).resolve().parents[3]
TRAIN = {
    "precision": "fp32",
    "autoencoder": {"channels": [8, 16], "norm_groups": 4, "images": 96, "batch_size": 16},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "train": TRAIN, "run": {"root": str(tmp_path / "runs")}}))
    make_dataset(Store(str(tmp_path / "runs" / "small" / "store")), WorldSpec(image_size=16), 40)
    return path


@pytest.mark.integration
@pytest.mark.slow
def test_torchrun_makes_what_one_process_makes_and_needs_no_ray(recipe: Path, tmp_path: Path) -> None:
    (poison := tmp_path / "poison" / "ray").mkdir(parents=True)
    (poison / "__init__.py").write_text("raise ImportError('no Ray here')\n")
    env = {
        **os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": f"{tmp_path / 'poison'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    module = ["-m", "components.training.main", "autoencoder", "--recipe", str(recipe)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    two = ["--set", f"run.registry=sqlite:///{tmp_path / 'two.db'}"]
    done = subprocess.run([*torchrun, *module, *two], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    made = Path(done.stdout.strip().splitlines()[-1])
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["kind"] == "autoencoder" and manifest["counts"] == {"images": 96, "steps": 6}
    assert "autoencoder: done" in done.stderr

    other = tmp_path / "runs" / "small" / "two"
    made.rename(other)
    alone = subprocess.run([sys.executable, *module], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert Path(alone.stdout.strip().splitlines()[-1]) == made  # the same identity
    again = json.loads((made / "manifest.json").read_text())
    assert again["evidence"]["order_digest"] == manifest["evidence"]["order_digest"]
    weights, theirs = (load_file(f / "model" / "diffusion_pytorch_model.safetensors") for f in (made, other))
    for name, value in weights.items():
        assert torch.allclose(value, theirs[name], atol=5e-3), name


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(yaml.safe_dump({"name": "empty", "run": {"root": str(tmp_path)}}))
    assert main(["autoencoder", "--recipe", str(path)]) == 4
    assert "There is no dataset in" in capsys.readouterr().err
    assert main(["autoencoder", "--recipe", str(path), "--set", "train.autoencoder.imges=3"]) == 2
    assert "did you mean 'images'" in capsys.readouterr().err
