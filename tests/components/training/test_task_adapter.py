"""A LoRA in training: what is trained and kept, the prior's share, and batches that do not depend on the ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from components.contracts.errors import TrainingError
from components.contracts.recipe import Adapter
from components.data.world import WorldSpec
from components.models.adapters import WEIGHTS
from components.runtime.storage import Artifact, Store
from components.training import checkpoint
from components.training.engine import Optimiser
from components.training.loop import Plan, train
from components.training.task_adapter import AdapterTask, Personalise, objective_of
from tests.components.models.test_adapters import FAMILIES, models  # noqa: F401
from tests.components.training.datasets import make_dataset

PLAN = Plan(
    images=24, batch_size=4, optimiser=Optimiser(1e-2, 0.0, 0.0, 1.0), warmup=0.1, cooldown=0.5, ema_decay=None,
    bf16=False, seed=3, zero_stage=1, checkpoint_every_s=1e9,
)  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(str(tmp_path_factory.mktemp("subject")))
    return make_dataset(store, WorldSpec(image_size=16, shapes=("star",)), 6, holdout=0.0)[0]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(str(tmp_path_factory.mktemp("prior")))
    return make_dataset(store, WorldSpec(image_size=16, shapes=("circle",)), 9, holdout=0.0)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lora_alone_is_trained_kept_and_saved(
    models: dict[str, Path], family: str, subject: Artifact, prior: Artifact, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    task = AdapterTask(Adapter(rank=2, prior=("a circle",)), models[family], subject.local(), prior.local())
    train(task, PLAN, tmp_path)
    kept = checkpoint.final_weights(tmp_path)
    assert kept and all(".lora_" in name for name in kept)
    assert any(weight.abs().sum() > 0 for name, weight in kept.items() if "lora_B" in name)  # they begin at zero
    module = task.build()
    module.load_state_dict(kept, strict=False)
    module.finished().save_pretrained(tmp_path / "out", safe_serialization=True)  # type: ignore[operator]
    assert len(load_file(tmp_path / "out" / WEIGHTS)) == len(kept)
    last = json.loads((tmp_path / "curve.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(last["subject_loss"] + last["prior_loss"], rel=1e-4)


def test_before_the_first_step_it_is_the_base(
    models: dict[str, Path], subject: Artifact, prior: Artifact  # noqa: F811
) -> None:  # fmt: skip
    task = AdapterTask(Adapter(prior=("a circle",), prior_weight=0.5), models["unet"], subject.local(), prior.local())
    module = task.build()
    assert isinstance(module, Personalise)
    task.open(module, torch.device("cpu"))
    batch = task.batch(np.arange(4), slice(0, 4), torch.Generator().manual_seed(1))
    found = module(**batch)
    assert torch.equal(found["loss"], found["subject_loss"] + 0.5 * found["prior_loss"])
    one = {name.removeprefix("subject_"): v for name, v in batch.items() if name.startswith("subject_")}
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(False)
    assert torch.equal(module.denoise(**one)["loss"], found["subject_loss"])


def test_a_batch_does_not_depend_on_the_ranks(
    models: dict[str, Path], subject: Artifact, prior: Artifact  # noqa: F811
) -> None:  # fmt: skip
    config = Adapter(prior=("a circle",), caption_dropout=0.5)
    task = AdapterTask(config, models["dit"], subject.local(), prior.local())
    assert task.open(task.build(), torch.device("cpu")) == [6]
    indices = np.array([5, 0, 3, 3])

    def batch(mine: slice) -> dict[str, torch.Tensor]:
        return task.batch(indices, mine, torch.Generator().manual_seed(7))

    whole, halves = batch(slice(0, 4)), [batch(slice(0, 2)), batch(slice(2, 4))]
    assert {"subject_data", "subject_states", "subject_mask", "prior_data", "prior_noise", "prior_times"} <= set(whole)
    for name, values in whole.items():
        assert len(values) == 4 and torch.equal(values, torch.cat([half[name] for half in halves]))


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"prediction_type": "flow_prediction", "flow_shift": 3.0}, ("flow", 3.0, False)),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, ("v", 1.0, True)),
        ({}, ("epsilon", 1.0, False)),
    ],
)
def test_the_objective_is_the_models(scheduler: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    found = objective_of(tmp_path)
    assert (found.objective, found.time_shift, found.zero_terminal_snr) == expected


def test_an_unknown_objective_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "sample"}')
    with pytest.raises(TrainingError, match="predicts sample"):
        objective_of(tmp_path)


def test_keys_of_the_prior_are_identity_only_with_a_prior() -> None:
    plain = Adapter().identity()
    assert Adapter(prior_images=9, prior_weight=3.0).identity() == plain and "prior_weight" not in plain
    kept = Adapter(prior=("a dog",), prior_weight=3.0).identity()
    assert kept == plain | {"prior_weight": 3.0}  # prompts and pictures are an input, the artifact `prior`
