"""Personalization through the real stages: a subject that the base never saw appears, and the rest stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.contracts.errors import ArtifactError, InputError
from components.contracts.recipe import Recipe
from components.data.scenes import Item, Scene
from components.data.world import render
from components.evaluation.styles import find_style, styles
from components.models.adapters import WEIGHTS
from components.models.pipeline import Generator
from components.models.stepping import Style
from components.runtime.cluster import ray_session
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome
from components.training.personalize import denoising_folder, side_of_model
from pipelines.personalize import base_model, personalize, subject_of
from tests.pipelines.small_model import PROMPTS, SIDE, colour_of, train_small_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CAPTION = "a picture of sks"
SUBJECT = "pink"
DRAWN = 16  # pictures a prompt


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    tree: dict[str, Any] = {
        "name": "personal",
        "train": {"precision": "fp32"},
        "adapter": {"rank": 8, "images": 1_200, "batch_size": 8, "prior_images": 32},
        "assess": {"steps": 8, "guidance_scale": 1.0},
        "serve": {"default_steps": 8},
        "run": {
            "root": str(tmp_path_factory.mktemp("runs")), "cpus": 2, "workers": 1, "object_store_mb": 150,
            "collect_tasks": 1,
        },
    }  # fmt: skip
    recipe = Recipe.model_validate(tree)
    with ray_session(recipe.run):
        yield Context.of(recipe)


@pytest.fixture(scope="module")
def base(ctx: Context, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model artifact that draws four colours."""
    home = tmp_path_factory.mktemp("small")
    train_small_model(home)
    draft = ctx.store.draft("model", {}, {"small": True})
    (home / "model").rename(draft.dir / "model")
    return draft.commit(Outcome())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of a pink star, no captions beside them."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(5):
        scene = Scene("single", (Item("star", SUBJECT, "large", "centre"),), "white")
        render(scene, 32, 100 + seed).save(folder / f"{seed}.png")
    return folder


def with_prior(ctx: Context, *prior: str) -> Context:
    adapter = ctx.recipe.adapter.model_copy(update={"prior": prior})
    return Context(ctx.recipe.model_copy(update={"adapter": adapter}), ctx.store, ctx.home)


def shares(generator: Generator, prompts: list[str], wanted: list[str], style: Style | None = None) -> float:
    """Share of pictures in the colour that is wanted of their prompt."""
    asked = [prompt for prompt in prompts for _ in range(DRAWN)]
    drawn = generator.generate(asked, [*range(DRAWN)] * len(prompts), steps=8, guidance_scale=1.0, style=style)
    hits = [colour_of(p) == wanted[i // DRAWN] for i, p in enumerate(drawn)]
    return float(np.mean(hits))


def test_the_subject_appears_and_the_rest_is_kept(ctx: Context, base: Artifact, photos: Path) -> None:
    style = personalize(with_prior(ctx, *PROMPTS), str(photos), CAPTION, model=base.url)
    assert (style.name, style.base, style.base_version) == ("sks", base.digest, "")
    adapter = find_style(ctx, "sks", base.digest)
    assert set(adapter.manifest.inputs) == {"model", "subject", "prior"} and adapter.manifest.counts["pictures"] == 5
    generator = Generator.load(denoising_folder(base), "cpu")
    said = [prompt.split()[1] for prompt in PROMPTS]
    before = {"subject": shares(generator, [CAPTION], [SUBJECT]), "rest": shares(generator, PROMPTS, said)}
    worn = Style(adapter.digest, adapter.path(f"model/{WEIGHTS}").parent)
    after = {"subject": shares(generator, [CAPTION], [SUBJECT], worn), "rest": shares(generator, PROMPTS, said, worn)}
    print(
        f"subject {before['subject']:.2f} -> {after['subject']:.2f}, rest {before['rest']:.2f} -> {after['rest']:.2f}"
    )
    assert before["subject"] <= 0.2 and after["subject"] >= 0.8
    assert before["rest"] >= 0.9 and after["rest"] >= before["rest"] - 0.1
    assert shares(generator, PROMPTS, said) == before["rest"]  # and the base is as it was

    again = personalize(with_prior(ctx, *PROMPTS), str(photos), CAPTION, model=base.url)
    assert again == style and len(styles(ctx)) == 1  # nothing is made or registered twice
    personalize(with_prior(ctx, *PROMPTS), str(photos), CAPTION, name="rosie", model=base.url)
    assert [s.name for s in styles(ctx)] == ["sks", "rosie"] and len(ctx.store.list("adapter")) == 1


def test_pictures_with_captions_and_without(ctx: Context, photos: Path, tmp_path: Path) -> None:
    for seed in range(3):
        Image.open(photos / f"{seed}.png").save(tmp_path / f"{seed}.png")
    (tmp_path / "1.txt").write_text("sks on white")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"3 of 4 pictures in .* have no caption"):
        subject_of(ctx, str(tmp_path), None, SIDE)
    subject = subject_of(ctx, str(tmp_path), CAPTION, SIDE)
    rows = pq.read_table(subject.path("data/part-00000.parquet")).to_pylist()
    assert sorted(row["caption"] for row in rows) == [CAPTION, CAPTION, "sks on white"]
    assert {(row["height"], row["width"], row["split"]) for row in rows} == {(SIDE, SIDE, "train")}


def test_models_that_can_be_named(ctx: Context, base: Artifact, tmp_path: Path) -> None:
    folder = denoising_folder(base)
    assert base_model(ctx, base.url) == (base, "") and side_of_model(folder) == SIDE
    adopted, version = base_model(ctx, str(folder))  # a diffusers folder
    assert (
        version == "" and adopted.manifest.kind == "base" and base_model(ctx, str(folder))[0].digest == adopted.digest
    )
    assert not any(name.endswith((".bin", ".pt")) for name in adopted.manifest.files)
    with pytest.raises(InputError, match="is no model to personalize: it lacks"):
        base_model(ctx, str(tmp_path))
    with pytest.raises(InputError, match="has no version 7"):
        base_model(ctx, "7")
    with pytest.raises(ArtifactError, match="no champion"):
        base_model(ctx, "champion")


def test_the_command_refuses_in_one_message(ctx: Context, base: Artifact, photos: Path, tmp_path: Path) -> None:
    def atelier(*words: str) -> subprocess.CompletedProcess[str]:
        start = [sys.executable, "-m", "pipelines.cli", "finetune", "--set", f"run.root={tmp_path}"]
        return subprocess.run([*start, *words], capture_output=True, text=True, timeout=900)

    for words, expected in (
        (("--caption", "x"), "--caption without --images"),
        (("--images", str(tmp_path / "none"), "--caption", "a sks", "--model", base.url), "does not exist"),
        (("--images", str(photos), "--name", "natural"), "cannot be called 'natural'"),
    ):
        done = atelier(*words)
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr, done.stderr
    listed = atelier("--list")
    assert listed.returncode == 0 and "No style of atelier yet" in listed.stderr + listed.stdout, listed.stderr
