"""The denoiser's task: what a batch holds, held-out batches, and a training of a transformer on loaded parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.contracts.recipe import Denoiser
from components.data.world import WorldSpec
from components.models.denoiser import make_denoiser
from components.models.loading import copy_autoencoder, copy_text_encoder
from components.models.text_encoder import load_text_tower, load_tokenizer, read_prompts
from components.runtime.storage import Artifact, Store
from components.training.encoding import Job, encode_piece
from components.training.samples import load_captions, load_pictures, table
from components.training.task_denoiser import Denoise, DenoiserTask
from components.training.texts import Job as TextJob
from components.training.texts import encode_piece as encode_text_piece
from tests.components.models.others import save_clip, save_dc, save_t5
from tests.components.training.datasets import make_dataset
from tests.components.training.tiny import PLAN, weights_of

DIT = {"family": "dit", "width": 32, "depth": 2, "heads": 2, "align_weight": 0.1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(str(tmp_path_factory.mktemp("store")))
    return make_dataset(store, WorldSpec(image_size=16), 60, holdout=0.2, buckets=((16, 16), (8, 24)))[0]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, dataset: Artifact) -> Path:
    """A CLIP and a T5 of others, each as an artifact's folder, an AutoencoderDC and its latents."""
    home = tmp_path_factory.mktemp("parts")
    for name, save in (("clip", save_clip), ("t5", save_t5)):
        copy_text_encoder(save(home / f"their {name}"), home / name / "model", home / name / "tokenizer", 30)
    copy_autoencoder(save_dc(home / "their dc"), home / "dc")
    threads = torch.get_num_threads()
    for path in dataset.paths("data/"):
        encode_piece({"path": str(path), "name": path.name}, Job(str(home / "dc"), "a" * 64, str(home / "latents")))
    torch.set_num_threads(threads)  # which encoding sets to one
    return home


def task_of(dataset: Artifact, parts: Path, encoder: str, **section: Any) -> DenoiserTask:
    config = Denoiser.model_validate({**DIT, "patch": 1, **section})
    folders = (parts / encoder / "model", parts / encoder / "tokenizer")
    task = DenoiserTask(config, dataset.local(), parts / "latents", *folders, 1.0, 6, 4)
    return replace(task, autoencoder=parts / "dc")


def test_captions_are_read_by_the_loaded_encoders_own_tokenizer(dataset: Artifact, parts: Path) -> None:
    tokenizer, own = load_tokenizer(parts / "t5" / "tokenizer"), load_tokenizer(dataset.local() / "tokenizer")
    captions = table(dataset.local(), ["caption", "height", "width"])
    ids = load_captions(dataset.local(), tokenizer)
    said = captions["caption"].to_pylist()
    words = {tuple(ids) for ids in tokenizer(said, padding="max_length", truncation=True)["input_ids"]}
    assert {tuple(row) for row in ids.tolist()} == words
    stored = {tuple(row) for row in table(dataset.local(), ["tokens"])["tokens"].to_pylist()}
    padded = load_captions(dataset.local(), own).tolist()
    assert {tuple(number for number in row if number != own.pad_token_id) for row in padded} == stored


def test_states_made_beforehand_are_those_of_the_batch(dataset: Artifact, parts: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    for path in dataset.paths("data/"):
        job = TextJob(str(parts / "t5"), "b" * 64, str(tmp_path / "texts"))
        encode_text_piece({"path": str(path), "name": path.name}, job)
    torch.set_num_threads(threads)
    plain = task_of(dataset, parts, "t5", align_weight=0.0)
    batches = []
    for task in (plain, replace(plain, texts=tmp_path / "texts")):
        task.open(torch.nn.Identity(), torch.device("cpu"))
        batches.append(task.batch(np.arange(6), slice(1, 5), torch.Generator().manual_seed(1)))
    assert batches[0]["states"].shape == (4, 30, 24) and torch.equal(batches[0]["mask"], batches[1]["mask"])
    assert torch.allclose(batches[0]["states"], batches[1]["states"], atol=4e-3)


def test_a_batch_holds_what_each_rank_needs_and_dropped_captions_are_empty_ones(dataset: Artifact, parts: Path) -> None:
    task = task_of(dataset, parts, "clip", caption_dropout=0.5)
    sizes = task.open(task.build(), torch.device("cpu"))
    assert sizes == load_pictures(dataset.local()).sizes
    chosen, seed = np.arange(sizes[0]), 3
    whole = task.batch(chosen, slice(0, len(chosen)), torch.Generator().manual_seed(seed))
    shares = (slice(0, 5), slice(5, len(chosen)))
    parts_of = [task.batch(chosen, share, torch.Generator().manual_seed(seed)) for share in shares]
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([part[key] for part in parts_of])), key
    assert whole["seen"].shape[1:] == (32, 2, 2) and whole["mask"].dtype == torch.bool
    tokenizer, tower = load_tokenizer(parts / "clip" / "tokenizer"), load_text_tower(parts / "clip" / "model")
    states, mask = read_prompts(tokenizer, tower, [""])
    empty = (whole["mask"] == mask).all(1)
    assert 0.2 < empty.float().mean() < 0.8
    assert torch.allclose(whole["states"][empty], states.expand(int(empty.sum()), -1, -1), atol=1e-5)


def test_held_out_batches_have_captions_and_fixed_times(dataset: Artifact, parts: Path) -> None:
    task = task_of(dataset, parts, "clip", caption_dropout=1.0).held_out()
    sizes = task.open(torch.nn.Identity(), torch.device("cpu"))
    assert sizes == load_pictures(dataset.local(), "holdout").sizes and sum(sizes) > 0
    batch = task.batch(np.arange(sizes[0]), slice(None), torch.Generator().manual_seed(0))
    assert torch.allclose(batch["times"], (torch.arange(sizes[0]) + 0.5) / sizes[0]) and "seen" not in batch
    assert batch["mask"].sum(1).min() > 2  # the empty prompt has begin and end


@pytest.mark.parametrize(("encoder", "section"), [
    ("clip", {"objective": "flow"}),
    ("t5", {"objective": "v", "align_weight": 0.0}),
    ("clip", {"objective": "epsilon", "family": "unet", "channels": [8, 16], "norm_groups": 4}),
])  # fmt: skip
def test_it_trains_and_draws_a_sheet(
    encoder: str, section: dict[str, Any], dataset: Artifact, parts: Path, tmp_path: Path
) -> None:
    """In this process, through the loop: flow, v and epsilon; the loss falls."""
    import json

    from components.training.loop import train

    task = task_of(dataset, parts, encoder, **section)
    train(task, replace(PLAN, images=30 * 8, ema_decay=0.9), tmp_path)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    losses = [point["loss"] for point in curve if "loss" in point]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    module = task.build()
    trained = weights_of(tmp_path)
    missing = module.load_state_dict(trained, strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys
    assert any(key.startswith("alignment.") for key in trained) == bool(task.config.align_weight)
    task.open(module, torch.device("cpu"))
    pictures, prompts = task.sheet(module.eval(), 3)
    assert pictures.shape == (3, 16, 16, 3) and pictures.dtype == np.uint8
    assert set(prompts) <= set(table(dataset.local(), ["caption"], "holdout")["caption"].to_pylist())
    module.finished().save_pretrained(tmp_path / "model")
    again = replace(task, start=tmp_path / "model").build()
    for (name, weight), other in zip(module.model.named_parameters(), again.model.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(weight, other), name


def test_a_transformer_trains_alike_in_parts_and_shards(dataset: Artifact, parts: Path, tmp_path: Path) -> None:
    """Accumulated, and under ZeRO-3 with gradient checkpointing, as in one piece; alignment included."""
    import json

    from components.training.loop import train

    task, curves = task_of(dataset, parts, "clip"), []
    ways: tuple[dict[str, Any], ...] = ({}, {"accumulate": 2}, {"zero_stage": 3, "gradient_checkpointing": True})
    for way in ways:
        folder = tmp_path / str(len(curves))
        folder.mkdir()
        train(task, replace(PLAN, images=4 * 8, ema_decay=None, **way), folder)
        lines = (folder / "curve.jsonl").read_text().splitlines()
        curves.append([point["loss"] for point in map(json.loads, lines) if "loss" in point])
    assert len(curves[0]) == 4 and curves[0][0] != curves[0][-1]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_plain_attention_is_chosen_for_few_places_alone_and_predicts_the_same(family: str) -> None:
    """On a processor; up to 256 places, whatever the family."""
    unet = {"channels": (16, 32), "norm_groups": 4, "cross_attention": (False, True)}
    shape = unet if family == "unet" else {"width": 32, "depth": 2, "patch": 1}
    config = Denoiser.model_validate({"family": family, "heads": 2, **shape})
    for side, plain in ((8, True), (32, False)):
        torch.manual_seed(0)
        module = Denoise(make_denoiser(config, 4, side, 16), config).eval()
        for weight in module.parameters():  # some start at zero
            weight.data.normal_(0, 0.1)
        data, noise = torch.randn(2, 3, 4, side, side)
        batch = (data, noise, torch.rand(3), torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool))
        with torch.no_grad():
            before = module(*batch)["loss"]
            module.fit_to(torch.device("cpu"))
            after = module(*batch)["loss"]
        kinds = {type(p).__name__ for p in module.model.attn_processors.values()}
        assert kinds == {"AttnProcessor" if plain else "AttnProcessor2_0"}
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
