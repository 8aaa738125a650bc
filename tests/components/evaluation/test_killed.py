"""An assessment killed with SIGKILL goes on where it was, and one that was not comes to the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from components.contracts.recipe import Assess, Recipe
from components.evaluation.assess import assess
from components.evaluation.judge import make_judge
from components.runtime.cluster import ray_session
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.components.models.families import save_family

pytestmark = [pytest.mark.integration, pytest.mark.slow]

COLOURS, THINGS = (
    ("red", "blue", "green", "black", "cyan"),
    ("star", "dog", "cat", "cross", "house", "tree", "cup", "car"),
)
PROMPTS = [f"a {size} {colour} {thing}" for size in ("small", "large") for colour in COLOURS for thing in THINGS]
CODE = """
import sys
from components.contracts.recipe import Recipe
from components.evaluation.assess import assess
from components.runtime.stage import Context

ctx = Context.of(Recipe.model_validate_json(sys.argv[1]))
assess(ctx, ctx.store.by_digest("model", sys.argv[2]), ctx.store.by_digest("judge", sys.argv[3]))
"""


def recipe_of(root: Path, workers: int) -> Recipe:
    run = {"root": str(root), "object_store_mb": 100, "workers": workers, "cpus": 2}
    return Recipe.model_validate({"name": "t", "run": run})


def test_killed_in_the_middle_it_goes_on(
    tmp_path: Path, make: Callable[..., Artifact], clip_files: dict[str, bytes], dataset_files: dict[str, bytes]
) -> None:
    ctx = Context.of(recipe_of(tmp_path, workers=2))
    save_family(tmp_path / "cnn", "cnn", side=32)
    saved = {p.relative_to(tmp_path / "cnn" / "model").as_posix(): p for p in (tmp_path / "cnn" / "model").rglob("*.*")}
    model = make(ctx, "model", {name: path.read_bytes() for name, path in saved.items()})
    clip, dataset = make(ctx, "judge_clip", clip_files), make(ctx, "dataset", dataset_files)
    config = Assess(batch_size=1, diversity_prompts=1, diversity_images=2)
    judge = make_judge(ctx, clip, dataset, {"known": PROMPTS}, config)
    told = ctx.recipe.model_dump_json()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, told, model.digest, judge.digest], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    store = Path(ctx.store.url)
    deadline = time.monotonic() + 600
    try:
        while len(list(store.glob("assessment/*/_state/known-*"))) < 3:
            assert process.poll() is None, "it ended before it was in the middle"
            assert time.monotonic() < deadline, "it was never seen in the middle"
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not list(store.glob("assessment/*/manifest.json"))
    drawn = {path: path.stat().st_mtime_ns for path in store.glob("assessment/*/_state/known-*.safetensors")}
    assert 3 <= len(drawn) < len(PROMPTS)

    linked = tmp_path / "seen"
    linked.mkdir()
    for path in drawn:  # the state goes when the artifact is done; another name of the same file stays
        os.link(path, linked / path.name)
    alone = Context.of(recipe_of(tmp_path / "alone", workers=1))
    same = [make(alone, kind, files) for kind, files in (("judge_clip", clip_files), ("dataset", dataset_files))]
    copy = make(alone, "model", {name: (model.local() / name).read_bytes() for name in model.manifest.files})
    with ray_session(ctx.recipe.run):
        finished = assess(ctx, model, judge)
        again = assess(alone, copy, make_judge(alone, *same, {"known": PROMPTS}, config))
    assert {p: (linked / p.name).stat().st_mtime_ns for p in drawn} == drawn
    assert finished.manifest.counts == {"known_pictures": len(PROMPTS)}
    assert all((linked / p.name).stat().st_nlink == 1 for p in drawn)
    assert again.digest == finished.digest, "by one worker in one go: the same bytes"
