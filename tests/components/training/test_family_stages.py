"""The families' stages: what is trained, assembled and gone on from, and what a retrain refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.contracts.errors import TrainingError
from components.contracts.recipe import Recipe, TextEncoder
from components.data.world import WorldSpec
from components.models.families import load_generator
from components.models.text_encoder import load_tokenizer, make_clip
from components.runtime.cluster import ray_session
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome
from components.training import families
from components.training.task_gan import GanTask
from tests.components.training.datasets import make_dataset

SMALL: dict[str, Any] = {
    "gan": {"channels": 8, "discriminator_channels": 8, "images": 64, "batch_size": 16},
    "cnn": {"channels": 8, "max_channels": 16, "images": 64, "batch_size": 16, "muon_rate": 0},
}


def recipe_of(root: Path, family: str, **train: Any) -> Recipe:
    settings = {"root": str(root), "cpus": 2, "object_store_mb": 200}
    tree = {"name": "small", "prepare": {"image_size": 16}, "model": {"family": family}, "train": {**SMALL, **train},
            "retrain": {"network": 0.5}, "run": settings}  # fmt: skip
    return Recipe.model_validate(tree)


def with_family(ctx: Context, family: str, **train: Any) -> Context:
    return Context(recipe_of(ctx.home.parent, family, **train), ctx.store, ctx.home)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context.of(recipe_of(tmp_path_factory.mktemp("runs"), "gan"))


@pytest.fixture(scope="module")
def dataset(ctx: Context) -> Artifact:
    return make_dataset(ctx.store, WorldSpec(image_size=16), 60)[0]


@pytest.fixture(scope="module")
def text_encoder(ctx: Context, dataset: Artifact) -> Artifact:
    """A CLIP of random weights, as the first of the two steps leaves one."""
    import shutil

    draft = ctx.store.draft("text_encoder", {"dataset": dataset}, {})
    shutil.copytree(dataset.local() / "tokenizer", draft.dir / "tokenizer")
    torch.manual_seed(0)
    config = TextEncoder(width=32, layers=1, image_layers=1, heads=2)
    make_clip(config, load_tokenizer(draft.dir / "tokenizer"), 16).save_pretrained(draft.dir / "model")
    return draft.commit(Outcome())


@pytest.fixture(scope="module")
def untrained(ctx: Context, dataset: Artifact, text_encoder: Artifact) -> Artifact:
    """A gan of random weights, in the shape that its training leaves."""
    section, clip = ctx.recipe.train.gan, text_encoder.local()
    task = GanTask(section, dataset.local(), clip / "model", clip / "tokenizer", 16)
    draft = ctx.store.draft("gan", {"dataset": dataset, "text_encoder": text_encoder}, section.identity())
    module: Any = task.build()
    module.finished().save_pretrained(draft.dir / "model")
    (draft.dir / "curve.json").write_text('[{"images": 64, "loss": 1.0}]')
    return draft.commit(Outcome(counts={"images": 64}, evidence={"order_digest": "d"}))


def test_parts_become_a_model(ctx: Context, dataset: Artifact, text_encoder: Artifact, untrained: Artifact) -> None:
    model = families.assemble_network(ctx, dataset, text_encoder, untrained)
    assert model.manifest.kind == "model" and model.manifest.inputs["gan"] == untrained.digest
    record = model.manifest.evidence["trainings"]["gan"]
    assert record == {"order_digest": "d", "images": 64, "curve": [{"images": 64, "loss": 1.0}]}
    generator = load_generator(model.local(), "cpu")
    pictures = generator.generate(["a small red circle"] * 2, [1, 2], steps=1, guidance_scale=1.0)
    assert generator.family == "gan" and pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8
    assert families.assemble_network(ctx, dataset, text_encoder, untrained).manifest == model.manifest
    assert not any("discriminators" in name for name in model.manifest.files), "they are no part of what draws"


def test_what_a_retrain_refuses(ctx: Context, dataset: Artifact, text_encoder: Artifact, untrained: Artifact) -> None:
    champion = families.assemble_network(ctx, dataset, text_encoder, untrained)
    assert families.champion_parts(ctx, None) == {}
    found = families.champion_parts(ctx, champion)
    assert {kind: part.digest for kind, part in found.items()} == {
        "text_encoder": text_encoder.digest, "gan": untrained.digest,
    }  # fmt: skip
    with pytest.raises(TrainingError, match=r"is of the family gan.*model.family=cnn.*Remedy: set model.family=gan"):
        families.champion_parts(with_family(ctx, "cnn"), champion)
    with pytest.raises(TrainingError, match=r"is of the family gan, and the recipe says model.family=diffusion"):
        families.champion_parts(with_family(ctx, "diffusion"), champion)
    wider = with_family(ctx, "gan", gan={**SMALL["gan"], "channels": 16})
    with pytest.raises(TrainingError, match=r"another shape.*channels 8 -> 16"):
        families.train_network(wider, dataset, text_encoder, untrained)


def test_another_text_encoder_than_a_clip_is_refused(ctx: Context, dataset: Artifact) -> None:
    draft = ctx.store.draft("text_encoder", {"dataset": dataset}, {"other": True})
    (draft.dir / "model").mkdir()
    (draft.dir / "model" / "config.json").write_text('{"model_type": "t5"}')
    other = draft.commit(Outcome())
    with pytest.raises(TrainingError, match=r"of the kind 't5'.*Expected: CLIP"):
        families.train_network(with_family(ctx, "cnn"), dataset, other)


@pytest.fixture(scope="module")
def ray(ctx: Context) -> Iterator[None]:
    with ray_session(ctx.recipe.run):
        yield


@pytest.mark.integration
@pytest.mark.slow
def test_a_gan_is_trained_by_two_workers_and_gone_on_from(
    ctx: Context, dataset: Artifact, text_encoder: Artifact, ray: None
) -> None:
    gan = families.train_network(ctx, dataset, text_encoder)
    curve = json.loads(gan.path("curve.json").read_text())
    assert {"loss", "discriminator_loss", "generator_loss", "generator_damsm_words"} <= curve[-1].keys()
    assert gan.manifest.circumstance["workers"] == 2 and gan.manifest.counts["images"] == 64
    assert families.train_network(ctx, dataset, text_encoder).manifest == gan.manifest, "done once is done"
    again = families.train_network(ctx, dataset, text_encoder, gan)
    assert again.manifest.inputs["start"] == gan.digest and again.manifest.counts["images"] == 32
