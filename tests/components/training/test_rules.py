"""What is refused before anything is trained, each with its remedy; and that the remedy helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from components.contracts.errors import TrainingError
from components.contracts.recipe import Adapter, Recipe
from components.training import rules


def _recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "x", **sections})


def test_guidance_without_caption_dropout_is_refused() -> None:
    plain = {"train": {"denoiser": {"caption_dropout": 0}}}
    with pytest.raises(TrainingError, match=r"caption_dropout is 0.*Remedy: set train.denoiser.caption_dropout=0.1"):
        rules.check_recipe(_recipe(**plain))
    with pytest.raises(TrainingError, match="Guidance of 3 is asked for"):
        rules.check_recipe(_recipe(**plain, assess={"guidance_scale": 1}, serve={"default_guidance": 3}))
    rules.check_recipe(_recipe(**plain, assess={"guidance_scale": 1}, serve={"default_guidance": 1}))
    rules.check_recipe(_recipe(train={"denoiser": {"caption_dropout": 0.1}}))
    rules.check_recipe(_recipe(**plain, model={"family": "cnn"}))  # which knows no guidance


def test_means_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"offload=cpu with run.zero_stage=0.*zero_stage=1"):
        rules.check_recipe(_recipe(run={"offload": "cpu", "zero_stage": 0}))
    with pytest.raises(TrainingError, match=r"keep_best=2 with train.validation_points=0"):
        rules.check_recipe(_recipe(run={"keep_best": 2}, train={"validation_points": 0}))
    rules.check_recipe(_recipe(run={"offload": "cpu", "zero_stage": 2, "keep_best": 2}))


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can() -> None:
    run = _recipe(run={"workers": 3, "accumulate": 2}).run
    with pytest.raises(
        TrainingError, match=r"batch_size 64 of the denoiser .* 3 workers of 2 passes.*batch_size to 66"
    ):
        rules.check_batch("denoiser", 64, run)
    assert rules.check_batch("denoiser", 66, run) == 11
    assert rules.check_batch("text_encoder", 66, run) == 22  # its batch is never cut
    elastic = _recipe(run={"workers": 4, "min_workers": 2}).run
    with pytest.raises(TrainingError, match="3 workers"):
        rules.check_batch("denoiser", 32, elastic)
    assert rules.check_batch("denoiser", 48, elastic) == 24  # the most that a worker may get


def test_a_dataset_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"31 pictures to train on, a batch of the autoencoder has 32.*batch_size to 31"
    ):
        rules.check_rows("autoencoder", 31, 32)
    rules.check_rows("autoencoder", 32, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_bits_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3), "ids": torch.zeros(3, dtype=torch.long)}, tmp_path / "model.safetensors")
    rules.require_full_precision(tmp_path, "the champion")
    save_file({"a": torch.zeros(3), "b": torch.zeros(3, dtype=dtype)}, tmp_path / "more.safetensors")
    with pytest.raises(
        TrainingError, match=r"weights of the champion in .*more.safetensors are stored as B?F16.*float\(\)"
    ):
        rules.require_full_precision(tmp_path, "the champion")


def test_an_adapter_trains_under_every_stage_but_not_by_everything() -> None:
    adapter = Adapter(batch_size=16)
    for stage in range(4):
        rules.check_adapter(adapter, _recipe(run={"zero_stage": stage}).run)
    with pytest.raises(TrainingError, match="no held-out pictures"):
        rules.check_adapter(adapter, _recipe(run={"keep_best": 1}).run)
    with pytest.raises(TrainingError, match="batch_size 16 of the adapter"):
        rules.check_adapter(adapter, _recipe(run={"workers": 3}).run)
