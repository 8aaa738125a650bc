"""Loaded parts as stages: artifacts by content, done once, and refused where they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.contracts.errors import RecipeError, TrainingError
from components.contracts.recipe import Recipe
from components.data.world import WorldSpec
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Store
from components.training.loading import autoencoder_of, text_encoder_of
from components.training.stages import assemble_model
from tests.components.models.others import save_clip, save_dc, save_kl, save_t5
from tests.components.training.datasets import make_dataset


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_clip(folder / "clip")
    save_t5(folder / "t5")
    save_kl(folder / "kl")
    save_dc(folder / "dc")
    return folder


@pytest.fixture(scope="module")
def dataset(home: Path) -> Artifact:
    return make_dataset(Store(str(home / "store")), WorldSpec(image_size=16), 30)[0]


def context(home: Path, **train: dict[str, Any]) -> Context:
    recipe = Recipe.model_validate({
        "name": "small", "train": {"denoiser": {"family": "dit"}, **train}, "prepare": {"image_size": 16},
        "run": {"root": str(home / "runs")},
    })  # fmt: skip
    return Context(recipe, Store(str(home / "store")), home / "runs")


def test_a_loaded_part_is_an_artifact_by_its_content(home: Path, dataset: Artifact) -> None:
    first = text_encoder_of(context(home, text_encoder={"source": str(home / "t5"), "max_tokens": 20}), dataset)
    assert first.manifest.evidence == {"kind": "t5", "width": 24, "max_tokens": 20} and not first.manifest.inputs
    assert first.manifest.circumstance["source"] == str(home / "t5")
    shutil.copytree(home / "t5", home / "moved", dirs_exist_ok=True)
    moved = context(home, text_encoder={"source": str(home / "moved"), "max_tokens": 20})
    assert text_encoder_of(moved, dataset).manifest == first.manifest  # done once, wherever it lies
    longer = context(home, text_encoder={"source": str(home / "moved"), "max_tokens": 30})
    assert text_encoder_of(longer, dataset).digest != first.digest
    assert text_encoder_of(moved, dataset, first) == first
    with pytest.raises(TrainingError, match=r"text_encoder\.source is not that of the champion"):
        text_encoder_of(longer, dataset, first)


def test_a_loaded_autoencoder_must_fit_recipe_and_pictures(home: Path, dataset: Artifact) -> None:
    def chosen(name: str, **section: Any) -> Artifact:
        return autoencoder_of(context(home, autoencoder={"source": str(home / name), **section}), dataset)

    made = chosen("dc", factor=4)
    assert made.manifest.evidence["kind"] == "AutoencoderDC" and made.manifest.evidence["scaling"] == 0.41
    assert json.loads(made.path("model/config.json").read_text())["_class_name"] == "AutoencoderDC"
    with pytest.raises(RecipeError, match=r"factor is 8;.*one latent of 2 pixels.*set train.autoencoder.factor=2"):
        chosen("kl")
    unet = {"channels": [8, 16], "norm_groups": 4}
    with pytest.raises(TrainingError, match=r"U-Net with an AutoencoderDC has no stock pipeline.*family=dit"):
        autoencoder_of(context(home, autoencoder={"source": str(home / "dc"), "factor": 4}, denoiser=unet), dataset)
    coarse = {"family": "dit", "patch": 4}
    with pytest.raises(TrainingError, match=r"holds pictures of 12x16 pixels.*multiples of 16"):
        odd = make_dataset(Store(str(home / "other")), WorldSpec(image_size=16), 8, buckets=((12, 16),))[0]
        autoencoder_of(context(home, autoencoder={"source": str(home / "dc"), "factor": 4}, denoiser=coarse), odd)


@pytest.mark.integration
@pytest.mark.slow
def test_a_model_of_loaded_parts_alone(home: Path, dataset: Artifact) -> None:
    """From the loaded parts to the finished model, through Ray: only the denoiser is trained."""
    from components.models.pipeline import Generator
    from components.runtime.cluster import ray_session
    from components.training.latents import encode_latents
    from components.training.stages import train_denoiser

    sections: dict[str, Any] = {
        "text_encoder": {"source": str(home / "t5"), "max_tokens": 24},
        "autoencoder": {"source": str(home / "kl"), "factor": 2, "scaling": "config"},
        "denoiser": {"family": "dit", "width": 32, "depth": 2, "heads": 2, "images": 64, "batch_size": 16},
        "precision": "fp32",
    }
    recipe = Recipe.model_validate({
        "name": "loaded", "train": sections, "prepare": {"image_size": 16},
        "run": {"root": str(home / "runs"), "cpus": 2, "object_store_mb": 200, "workers": 1},
    })  # fmt: skip
    ctx = Context(recipe, Store(str(home / "store")), home / "runs" / "loaded")
    with ray_session(recipe.run):
        text_encoder, autoencoder = text_encoder_of(ctx, dataset), autoencoder_of(ctx, dataset)
        latents = encode_latents(ctx, dataset, autoencoder)
        denoiser = train_denoiser(ctx, dataset, latents, text_encoder, autoencoder)
    model = assemble_model(ctx, dataset, text_encoder, autoencoder, denoiser)
    facts = json.loads(latents.path("latents.json").read_text())
    assert facts == {"scaling": 0.5, "channels": 4, "size": 8}
    assert set(model.manifest.evidence["trainings"]) == {"denoiser"}
    generator = Generator.load(model.local(), "cpu")
    assert generator.image_size == 16 and generator.truncated("red " * 40) and not generator.truncated("a Red star")
    assert generator.generate(["a red star"], [1], steps=2, guidance_scale=2.0).shape == (1, 16, 16, 3)
