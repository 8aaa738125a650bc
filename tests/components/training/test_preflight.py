"""Trainings looked at before there is any data: what they need, whether it fits, and what would."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml

from components.contracts.errors import TrainingError
from components.contracts.recipe import Recipe
from components.runtime.cluster import apply_quiet_environment
from components.training import preflight, room
from components.training.probes import Shapes, autoencoder_probe, denoiser_probe, text_encoder_probe

apply_quiet_environment()
SMALL: dict[str, Any] = {
    "text_encoder": {"width": 32, "layers": 1, "image_layers": 1, "heads": 2, "batch_size": 32},
    "autoencoder": {"channels": [8, 16], "norm_groups": 4, "batch_size": 16},
    "denoiser": {"channels": [16, 32], "norm_groups": 4, "heads": 2, "batch_size": 32},
}


def _recipe(run: dict[str, Any] | None = None, **train: dict[str, Any]) -> Recipe:
    sections = {name: {**values, **train.get(name, {})} for name, values in SMALL.items()}
    return Recipe.model_validate({"name": "x", "prepare": {"image_size": 16}, "train": sections, "run": run or {}})


def test_every_training_of_a_recipe_is_looked_at_without_data() -> None:
    found = preflight.report(_recipe(), one_step=True)
    assert [r.kind for r in found] == ["text_encoder", "autoencoder", "denoiser"]
    assert [r.samples for r in found] == [16, 8, 16]  # of two workers
    for r in found:
        assert r.fits and r.found.parameters > 1000 and r.flops_per_image > 1e5
        preflight.require_room([r])
        with pytest.raises(TrainingError, match=r"needs about .* and has 0.0 GB \(a thimble\)"):
            preflight.require_room([replace(r, room=(1, "a thimble"))])
        assert r.loss is not None and r.loss > 0 and r.seconds is not None and r.seconds > 0
    text = preflight.table(found)
    assert text.count("one step on 2 samples: loss") == 3 and "GFLOP/img" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_what_does_not_fit_is_refused_with_means_that_fit() -> None:
    recipe = _recipe({"gpus_per_worker": 1, "gpu_memory_gb": 0.0035, "workers": 2}, denoiser={"ema_decay": 0.9})
    probe = denoiser_probe(recipe, Shapes.of(recipe))
    with pytest.raises(TrainingError, match=r"needs about .* GB a worker.*a GPU of 0.0035 GB") as refused:
        preflight.check_training(probe, recipe)
    remedy = refused.value.remedy
    assert remedy.startswith("it fits with --set run.")
    words = (word.removeprefix("run.").split("=") for word in shlex.split(remedy) if "=" in word)
    changes = {key: yaml.safe_load(value) for key, value in words}
    eased = recipe.model_copy(update={"run": recipe.run.model_validate({**recipe.run.model_dump(), **changes})})
    assert preflight.check_training(probe, eased).fits


def test_what_no_means_would_fit_is_refused_too() -> None:
    recipe = _recipe({"gpus_per_worker": 1, "gpu_memory_gb": 1e-5})
    probe = text_encoder_probe(recipe, Shapes.of(recipe))
    with pytest.raises(TrainingError, match="choose a smaller model"):
        preflight.check_training(probe, recipe)


def test_shapes_that_do_not_fit_together_are_one_error() -> None:
    recipe = _recipe(autoencoder={"channels": [8, 18]})
    with pytest.raises(TrainingError, match=r"autoencoder of this recipe cannot be trained: .*norm_groups"):
        preflight.check_training(autoencoder_probe(recipe, Shapes.of(recipe)), recipe)


def test_rows_are_looked_at_where_they_are_known() -> None:
    recipe = _recipe()
    with pytest.raises(TrainingError, match="15 pictures to train on, a batch of the autoencoder has 16"):
        preflight.check_training(autoencoder_probe(recipe, Shapes.of(recipe)), recipe, rows=15)


@pytest.mark.parametrize("losses", ["contrastive", "damsm", "both"])
def test_the_text_encoders_step_compares_unlike_captions(losses: str) -> None:
    found = preflight.report(_recipe(text_encoder={"losses": losses}), one_step=True)[0]
    assert found.kind == "text_encoder" and found.loss is not None and found.loss > 0.1


def test_room_is_of_the_machine_or_of_the_gpu_that_the_recipe_names() -> None:
    mine = room.room_of(_recipe({"workers": 2}).run)
    assert mine is not None and 0 <= mine[0] < room.free_memory()
    assert room.room_of(_recipe({"ray_address": "ray://head:10001"}).run) is None
    named = room.room_of(_recipe({"gpus_per_worker": 0.5, "gpu_memory_gb": 80}).run)
    assert named is not None and named[0] == pytest.approx(0.5 * 0.93 * 80e9)
