"""CLIP by contrast, by DAMSM and by both: losses over ranks, learning, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.contracts.errors import ArtifactError
from components.contracts.recipe import TextEncoder
from components.data.world import WorldSpec
from components.evaluation.retrieval import measure_encoder
from components.models.damsm import WEIGHTS, Towers, has_head, load_head, load_towers, words_mask
from components.models.text_encoder import load_clip, load_tokenizer
from components.runtime.storage import Artifact, Store
from components.training.engine import joined_group
from components.training.task_text_encoder import Contrast, TextEncoderTask
from tests.components.training.datasets import make_dataset


def task_of(dataset: Path, losses: str, **more: Any) -> TextEncoderTask:
    """The smallest text encoder on pictures of 16 pixels."""
    small = {"width": 32, "layers": 1, "image_layers": 1, "heads": 2, "patch": 8, "damsm_width": 24, "batch_size": 24}
    return TextEncoderTask(TextEncoder.model_validate({**small, "losses": losses}), dataset, 16, **more)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(str(tmp_path_factory.mktemp("store")))
    return make_dataset(store, WorldSpec(image_size=16), 120, holdout=0.2, alternatives=True)[0]


def trained(task: TextEncoderTask, steps: int) -> tuple[Contrast, list[dict[str, float]]]:
    """The task's module after so many steps of AdamW, and what was logged."""
    joined_group()
    torch.manual_seed(0)
    module = task.build().train()
    assert isinstance(module, Contrast)
    count = sum(task.open(module, torch.device("cpu")))
    optimiser = torch.optim.AdamW(module.parameters(), 3e-3)
    order, seen = np.random.default_rng(0), []
    for step in range(steps):
        indices = order.integers(0, count, task.config.batch_size)
        batch = task.batch(indices, slice(None), torch.Generator().manual_seed(step))
        scalars = module(**batch)
        optimiser.zero_grad()
        scalars["loss"].backward()
        optimiser.step()
        seen.append({name: float(value.detach()) for name, value in scalars.items()})
    return module, seen


@pytest.mark.parametrize("losses", ["contrastive", "damsm", "both"])
def test_it_learns_to_find_held_out_pictures(dataset: Artifact, losses: str, tmp_path: Path) -> None:
    """From the first step to the stock folder with its head, which opens again and is worth more than chance."""
    task = task_of(dataset.local(), losses)
    module, seen = trained(task, 60)
    assert np.mean([s["loss"] for s in seen[-5:]]) < 0.8 * seen[0]["loss"]
    assert ("words" in seen[0]) == (losses != "contrastive") and ("contrastive" in seen[0]) == (losses == "both")
    held, rows = task.held_out(), list(range(8))
    held.open(module, torch.device("cpu"))
    module.eval()
    batch = held.batch(np.array(rows), slice(None), torch.Generator())
    assert float(module(**batch)["loss"].detach()) > 0  # within its own batch
    module.finished().save_pretrained(tmp_path / "model")
    load_tokenizer(dataset.local() / "tokenizer").save_pretrained(tmp_path / "tokenizer")
    assert has_head(tmp_path / "model") == (losses != "contrastive")
    towers = load_towers(tmp_path / "model")
    assert towers.width == (32 if losses == "contrastive" else 24) and not any(
        p.requires_grad for p in towers.parameters()
    )
    with torch.no_grad():
        for a, b in zip(towers.read(batch["ids"]), module.towers.read(batch["ids"]), strict=True):
            assert torch.equal(a, b)
        states = towers.clip.text_model(input_ids=batch["ids"]).last_hidden_state
        assert torch.equal(towers.read_states(states, batch["ids"])[2], towers.read(batch["ids"])[2])
    found = measure_encoder(tmp_path, dataset)
    assert found["held_out_captions"] > found["held_out_pictures"] > 10
    estimate = found["r_precision"]
    assert estimate["low"] <= estimate["value"] <= estimate["high"] and estimate["n"] == found["held_out_pictures"]
    chance = 10 / found["held_out_pictures"]
    assert found["image_to_text_recall_at_10"]["value"] > chance and estimate["value"] > 0.02


@pytest.mark.parametrize("losses", ["contrastive", "damsm"])
def test_a_thumbnail_is_drawn_from_the_caption_alone(dataset: Artifact, losses: str, tmp_path: Path) -> None:
    """It comes to look like the caption's picture and unlike another's, and is no part of what is kept."""
    task = task_of(dataset.local(), losses)
    task.config = task.config.model_copy(update={"thumbnail": 4})
    module, seen = trained(task, 120)
    assert np.mean([s["thumbnail"] for s in seen[-5:]]) < 0.5 * seen[0]["thumbnail"]
    for scalars in seen:
        total = scalars["matching"] + task.config.thumbnail_weight * scalars["thumbnail"]
        assert scalars["loss"] == pytest.approx(total, rel=1e-4)
    batch = task.batch(np.arange(24), slice(None), torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = module.eval()(**batch)["thumbnail"]
        others = module(batch["pixels"], batch["ids"].roll(1, 0))["thumbnail"]
    assert own < 0.7 * others
    module.finished().save_pretrained(tmp_path)
    kept = load_clip(tmp_path).state_dict()
    assert kept and not any("thumbnail" in name for name in kept)


def test_gradients_flow_to_the_pixels_of_frozen_towers(dataset: Artifact) -> None:
    towers = Towers(task_of(dataset.local(), "both").build().towers.clip).eval().requires_grad_(False)
    pixels = torch.zeros(2, 3, 32, 32, requires_grad=True)  # a size that is not the tower's
    regions, images = towers.look(pixels)
    assert regions.shape == (2, 4, 32) and images.shape == (2, 32)
    (regions.square().sum() + images.sum()).backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_words_are_between_begin_and_end() -> None:
    ends = torch.tensor([4, 2, 1, 0])
    assert words_mask(ends, 5).tolist() == [
        [False, True, True, True, False],
        [False, True, False, False, False],
        [False, True, False, False, False],  # an empty caption: its end token
        [True, False, False, False, False],
    ]


def test_going_on_from_weights_keeps_them_and_their_colours(dataset: Artifact, tmp_path: Path) -> None:
    """A CLIP from elsewhere, with colours of its own and no head, gets one; one with a head keeps it."""
    module = task_of(dataset.local(), "contrastive").build()
    module.finished().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}'
    )
    tuned = task_of(dataset.local(), "both", start=tmp_path).build()
    before, after = load_clip(tmp_path).state_dict(), tuned.towers.clip.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    grey = tuned.towers._coloured(torch.zeros(1, 3, 16, 16))
    assert torch.allclose(grey[0, :, 0, 0], (0.5 - torch.tensor([0.48, 0.46, 0.41])) / torch.tensor([0.27, 0.26, 0.28]))
    tuned.finished().save_pretrained(tmp_path / "tuned")
    again = task_of(dataset.local(), "damsm", start=tmp_path / "tuned").build()
    assert torch.equal(again.towers.head.words.weight, tuned.towers.head.words.weight)
    assert again.towers.colours == tuned.towers.colours
    (tmp_path / "tuned" / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"DAMSM head.*losses=both"):
        load_head(tmp_path / "tuned")


@pytest.mark.integration
@pytest.mark.slow
def test_a_clip_from_a_folder_is_tuned_as_a_stage(dataset: Artifact, tmp_path: Path) -> None:
    """Through Ray Train: its own tokenizer and shape stay, the head comes, and what it is worth is on record."""
    from mlflow import MlflowClient

    from components.contracts.recipe import Recipe
    from components.runtime.stage import Context
    from components.training.loading import text_encoder_of
    from tests.components.training.datasets import write_tokenizer

    source = tmp_path / "clip"
    write_tokenizer(source, ["a red star on a grey background"] * 2, 300, 20)
    section = TextEncoder(width=16, layers=1, image_layers=1, heads=2)
    own = TextEncoderTask(section, dataset.local(), 16, tokenizer=source)
    torch.manual_seed(5)
    own.build().finished().save_pretrained(source)
    recipe = Recipe.model_validate({
        "name": "tuned",
        "train": {"precision": "fp32", "text_encoder": {
            "source": str(source), "fine_tune": True, "losses": "both", "images": 96, "batch_size": 24,
            "damsm_width": 8, "learning_rate": 1e-3, "muon_rate": 0,
        }},
        "run": {"root": str(tmp_path / "runs"), "workers": 1, "object_store_mb": 200},
    })  # fmt: skip
    ctx = Context.of(recipe)
    tuned = text_encoder_of(ctx, dataset, measure=measure_encoder)
    assert set(tuned.manifest.inputs) == {"dataset", "source"} and has_head(tuned.local() / "model")
    clip = load_clip(tuned.local() / "model")
    tokenizers = [load_tokenizer(folder) for folder in (tuned.local() / "tokenizer", source)]
    assert len({(t.model_max_length, len(t)) for t in tokenizers}) == 1
    text = clip.config.text_config
    assert text.hidden_size == 16 and text.vocab_size == len(tokenizers[1]) and text.max_position_embeddings == 20
    weights = [c.text_model.state_dict() for c in (clip, load_clip(source))]
    moved = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert 0 < moved < 0.2  # went on from there
    evidence = tuned.manifest.evidence
    client = MlflowClient(ctx.registry_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    logged = next(r.data.metrics for r in runs if "r_precision" in r.data.metrics)
    for name in ("r_precision", "image_to_text_recall_at_5", "text_to_image_recall_at_10"):
        assert evidence[name]["low"] <= evidence[name]["value"] <= evidence[name]["high"]
        assert logged[name] == pytest.approx(evidence[name]["value"])
    assert text_encoder_of(ctx, dataset, measure=measure_encoder).digest == tuned.digest


def test_keys_without_effect_are_no_identity() -> None:
    plain = TextEncoder()
    assert TextEncoder(damsm_width=7, damsm_weight=3.0).identity() == plain.identity()
    assert TextEncoder(losses="both", damsm_width=7).identity() != TextEncoder(losses="both").identity()
    assert TextEncoder(thumbnail_weight=3.0).identity() == plain.identity()
    assert TextEncoder(thumbnail=16, thumbnail_weight=3.0).identity() != TextEncoder(thumbnail=16).identity()
    with pytest.raises(ValueError, match="fine_tune is true without a source"):
        TextEncoder(fine_tune=True)
