"""A registered version opened by MLflow alone, in a process that does not know this project."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.contracts.errors import ArtifactError, InputError
from components.models.families import load_generator
from components.models.pyfunc import DATA, Drawing, _load_pyfunc, loadable, requirements
from components.runtime.cluster import quiet_environment
from components.runtime.precision import name_of
from components.runtime.storage import Artifact, Outcome, Store
from components.runtime.tracking import Tracker
from tests.components.models.families import save_diffusion, save_family

CLEAN = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{f} {getattr(f, '__module__', '')}".lower()]
sys.path_hooks[:] = [h for h in sys.path_hooks if "editable" not in f"{h} {getattr(h, '__module__', '')}".lower()]
sys.path[:] = [p for p in sys.path if p and "editable" not in p]
try:
    import components
    sys.exit("the project is on the path")
except ModuleNotFoundError:
    pass
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
frame = pandas.DataFrame({"prompt": ["a red star", "a blue circle"], "seed": [3, 4]})
drawn = model.predict(frame, params={"steps": 2})
assert "mlruns" in sys.modules["components"].__file__, sys.modules["components"].__file__
for i, data in enumerate(drawn["image"]):
    open(f"{sys.argv[3]}/{i}.png", "wb").write(data)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """A model artifact of a family."""
    root = tmp_path_factory.mktemp("models")

    def build(family: str) -> Artifact:
        draft = Store(str(root / "store")).draft("model", {}, {"family": family})
        if family == "diffusion":
            save_diffusion(root / family)
        else:
            save_family(root / family, family)
        (root / family / "model").rename(draft.dir / "model")
        return draft.commit(Outcome())

    return build


@pytest.mark.integration
@pytest.mark.parametrize("family", ["diffusion", "gan"])
def test_a_clean_process_loads_the_version_and_draws(
    family: str, model: Callable[[str], Artifact], tmp_path: Path
) -> None:
    artifact = model(family)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, "runs", tmp_path / "mlruns")
    with tracker.run("release") as run:
        made = tracker.register("m", artifact.url, run.id, {}, "", loadable(artifact, tmp_path / "code", 4, 2.0))
    tracker.set_alias("m", "champion", made.version)
    assert made.source == artifact.url, "what serves it goes to the store"
    kept = [path for path in (tmp_path / "mlruns").rglob("*") if path.is_file()]
    assert any(path.name == "MLmodel" for path in kept)
    assert not [p for p in kept if p.suffix == ".safetensors"] and sum(p.stat().st_size for p in kept) < 1_500_000

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quiet_environment()
    command = [sys.executable, "-c", CLEAN, uri, "models:/m@champion", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    mine = load_generator(artifact.local() / "model").generate(
        ["a red star", "a blue circle"], [3, 4], steps=2, guidance_scale=2.0
    )
    near = 2 if name_of("cpu") == "fp32" else 12  # of 255: these are drawn together, those were one by one
    for i, picture in enumerate(mine):
        drawn = np.asarray(Image.open(tmp_path / f"{i}.png").convert("RGB"))
        assert drawn.shape == picture.shape and np.abs(drawn.astype(int) - picture).max() <= near, (
            "prompt and seed tell"
        )


class Colours:
    """A generator whose pictures tell what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[int], int, float, list[str] | None]] = []

    def generate(self, prompts, seeds, *, steps, guidance_scale, negative_prompts=None):  # type: ignore[no-untyped-def]
        self.asked.append((list(prompts), list(seeds), steps, guidance_scale, negative_prompts))
        return np.stack([np.full((4, 4, 3), seed % 256, np.uint8) for seed in seeds])


def test_rows_are_drawn_in_their_order_whatever_their_number() -> None:
    generator = Colours()
    drawing = Drawing(generator, 16, 2.0)  # type: ignore[arg-type]
    frame = pd.DataFrame({"prompt": [f"p{i}" for i in range(40)], "seed": range(40)}, index=range(5, 45))
    found = drawing.predict(frame, {"guidance_scale": 3.0, "steps": None})
    assert list(found.index) == list(frame.index) and len(generator.asked) == 3
    for seed, data in zip(range(40), found["image"], strict=True):
        assert np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0] == seed
    assert all(asked[2:] == (16, 3.0, None) for asked in generator.asked)
    drawing.predict({"prompt": ["a", "b"], "negative_prompt": ["dark", None]})
    assert generator.asked[-1] == (["a", "b"], [0, 1], 16, 2.0, ["dark", ""])


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        ({"text": ["a"]}, r"without a prompt; the columns are text"),
        ({"prompt": ["a", None]}, "without a prompt"),
        ({"prompt": ["a"], "seed": ["x"]}, "no whole number"),
        ({"prompt": ["a"], "seed": [-1]}, "out of range"),
    ],
)
def test_what_cannot_be_drawn_is_said(frame: dict[str, list[object]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Drawing(Colours(), 16, 2.0).predict(pd.DataFrame(frame))  # type: ignore[arg-type]


def test_a_store_that_is_away_or_holds_another_model_is_named(model: Callable[[str], Artifact], tmp_path: Path) -> None:
    said = {"url": str(tmp_path / "gone"), "digest": "0" * 64, "steps": 4, "guidance_scale": 2.0}
    (tmp_path / DATA).write_text(json.dumps(said))
    with pytest.raises(ArtifactError, match=r"gone.*MLflow keeps no copy.*make the store reachable"):
        _load_pyfunc(str(tmp_path / DATA))
    (tmp_path / DATA).write_text(json.dumps(said | {"url": model("cnn").url}))
    with pytest.raises(ArtifactError, match="holds another artifact than was named"):
        _load_pyfunc(str(tmp_path / DATA))


def test_requirements_are_pinned_as_pip_takes_them() -> None:
    found = requirements()
    assert {line.partition("==")[0] for line in found} >= {"torch", "diffusers", "transformers", "pydantic"}
    assert all(line.count("==") == 1 and "+" not in line for line in found)
