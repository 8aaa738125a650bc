"""cnn, vae and gan through the loop in this process: what is trained in a turn, what is kept, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Cnn, Gan, Recipe, TextEncoder, Vae
from components.data.world import WorldSpec
from components.models.one_pass import load_network
from components.models.text_encoder import load_tokenizer, make_clip
from components.runtime.storage import Store
from components.training.checkpoint import final_weights
from components.training.family_probes import one_pass_probe
from components.training.loop import train
from components.training.pairs import PairsTask
from components.training.probes import Shapes
from components.training.task_cnn import CnnTask
from components.training.task_gan import GanTask
from components.training.task_vae import VaeTask
from tests.components.training.datasets import make_dataset
from tests.components.training.tiny import PLAN

SIDE, BATCH = 16, 8
TASKS: dict[str, tuple[type[PairsTask], Any]] = {
    "cnn": (CnnTask, Cnn(channels=8, max_channels=16, perceptual_weight=0.1)),
    "vae": (VaeTask, Vae(channels=8, max_channels=16, latent=4)),
    "gan": (GanTask, Gan(channels=8, discriminator_channels=8, r1_weight=0.1, r1_every=2)),
}
PLAN_ = replace(PLAN, images=12 * BATCH, batch_size=BATCH, seed=5)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., PairsTask]:
    """Makes the task of a family on a small dataset with two shapes of pictures."""
    root = tmp_path_factory.mktemp("pairs")
    buckets = ((16, 16), (24, 16))
    dataset, _ = make_dataset(Store(str(root / "store")), WorldSpec(image_size=SIDE), 60, buckets=buckets, holdout=0.2)
    tokenizer = load_tokenizer(dataset.local() / "tokenizer")
    torch.manual_seed(0)
    clip = make_clip(TextEncoder(width=16, layers=1, image_layers=1, heads=2), tokenizer, SIDE)
    clip.save_pretrained(root / "clip")

    def task(family: str, **more: Any) -> PairsTask:
        kind, section = TASKS[family]
        return kind(section, dataset.local(), root / "clip", dataset.local() / "tokenizer", SIDE, **more)

    return task


def trained(task: PairsTask, folder: Path, **plan: Any) -> Path:
    """Train to the end and save; the folder of the network."""
    folder.mkdir(exist_ok=True)
    train(task, replace(PLAN_, **plan), folder)  # type: ignore[arg-type]
    module: Any = task.build()  # type: ignore[attr-defined]
    module.load_state_dict(final_weights(folder), strict=True)
    module.finished().save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("family", TASKS)
def test_a_training_is_kept_and_gone_on_from(family: str, make: Callable[..., PairsTask], tmp_path: Path) -> None:
    saved = trained(make(family), tmp_path / "one")
    design, network = load_network(saved)
    assert (design.family, design.side) == (family, SIDE)
    _, fresh = make(family).network()
    torch.manual_seed(PLAN_.seed)
    moved = [not torch.equal(a, b) for a, b in zip(network.parameters(), fresh.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    again = make(family, start=saved)
    module: Any = again.build()  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(module.network.parameters(), network.parameters(), strict=True))
    if family == "gan":
        (saved / "discriminators.safetensors").unlink()
        with pytest.raises(ArtifactError, match=r"discriminators.*cannot be read"):
            again.build()  # type: ignore[attr-defined]


def test_an_interrupted_gan_goes_on_bit_by_bit(make: Callable[..., PairsTask], tmp_path: Path) -> None:
    """Both players, their optimisers, the average and the power iteration's vectors are in the checkpoint."""
    whole = final_weights_after(make("gan"), tmp_path / "whole")

    class Stops(GanTask):
        def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, torch.Tensor]:
            if self.step >= 8:
                raise InterruptedError
            return super().batch(indices, mine, draws)

    first = make("gan")
    stopping = Stops(**{name: getattr(first, name) for name in first.__dataclass_fields__})
    (tmp_path / "cut").mkdir()
    with pytest.raises(InterruptedError):
        train(stopping, replace(PLAN_, checkpoint_every_s=0.0), tmp_path / "cut")
    resumed = final_weights_after(make("gan"), tmp_path / "cut")
    assert whole.keys() == resumed.keys() and any("_u" in name for name in whole)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def final_weights_after(task: PairsTask, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    train(task, PLAN_, folder)  # type: ignore[arg-type]
    return dict(final_weights(folder))


def test_a_turn_moves_its_own_player_alone(make: Callable[..., PairsTask]) -> None:
    task = make("gan")
    module: Any = task.build()  # type: ignore[attr-defined]
    task.open(module, torch.device("cpu"))
    batch = task.batch(np.arange(BATCH), slice(0, BATCH), torch.Generator().manual_seed(0))
    players = {name: [*turn.parameters()] for name, turn in module.turns().items()}
    assert not {id(p) for p in players["generator"]} & {id(p) for p in players["discriminator"]}
    for name, turn in module.turns().items():
        module.zero_grad(set_to_none=True)
        found = turn(**batch)
        found["loss"].backward()
        assert all(p.grad is not None for p in players[name]), f"every parameter of the {name} learns in its turn"
        rest = [p for other, owned in players.items() if other != name for p in owned]
        assert all(p.grad is None and p.requires_grad for p in rest)
    assert {"adversarial", "kl", "damsm_words", "damsm_sentence"} <= found.keys()


def test_batches_do_not_depend_on_the_ranks(make: Callable[..., PairsTask]) -> None:
    task = make("gan")
    task.open(task.build(), torch.device("cpu"))  # type: ignore[attr-defined]
    indices = np.arange(BATCH)

    def share(part: slice) -> dict[str, torch.Tensor]:
        return task.batch(indices, part, torch.Generator().manual_seed(1))

    whole, halves = share(slice(0, 8)), [share(slice(0, 4)), share(slice(4, 8))]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([half[name] for half in halves])), name


def test_regression_learns_and_held_out_pictures_are_others(make: Callable[..., PairsTask]) -> None:
    task = make("cnn")
    module: Any = task.build()  # type: ignore[attr-defined]
    task.open(module, torch.device("cpu"))
    held = task.held_out()
    assert held is not None
    held.open(module, torch.device("cpu"))
    optimiser = torch.optim.Adam(module.parameters(), 3e-3)
    losses = []
    for step in range(30):
        batch = task.batch(np.arange(BATCH), slice(0, BATCH), torch.Generator().manual_seed(step))
        loss = module(**batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    mine, theirs = (t.batch(np.arange(2), slice(0, 2), torch.Generator()) for t in (task, held))
    assert not torch.equal(mine["pixels"], theirs["pixels"])
    pictures, prompts = task.sheet(module, 3)
    assert pictures.shape == (3, SIDE, SIDE, 3) and len(prompts) == 3


@pytest.mark.parametrize("family", TASKS)
def test_preflights_example_is_like_a_real_batch(family: str, make: Callable[..., PairsTask]) -> None:
    section = TASKS[family][1].identity()
    tree = {"name": "x", "prepare": {"image_size": SIDE}, "model": {"family": family}, "train": {family: section}}
    recipe = Recipe.model_validate(tree)
    probe = one_pass_probe(recipe, Shapes.of(recipe))
    example, task = probe.example(2), make(family)
    module: Any = probe.build()
    for turn in module.turns().values() if family == "gan" else [module]:
        assert torch.isfinite(turn(**example)["loss"])
    task.open(task.build(), torch.device("cpu"))  # type: ignore[attr-defined]
    real = task.batch(np.arange(2), slice(0, 2), torch.Generator())
    assert {k: (v.dtype, v.dim()) for k, v in real.items()} == {k: (v.dtype, v.dim()) for k, v in example.items()}
