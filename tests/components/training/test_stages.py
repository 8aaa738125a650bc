"""The stages through Ray Train and DeepSpeed, at the smallest size: the real path with two workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components.contracts.errors import ArtifactError, TrainingError
from components.contracts.recipe import Recipe
from components.data.world import WorldSpec
from components.models.text_encoder import load_clip, load_tokenizer, text_states, text_tower
from components.runtime.cluster import ray_session
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Store
from components.training import stages
from components.training.latents import encode_latents
from components.training.order import Order
from components.training.samples import load_captions, load_ids, load_pictures
from components.training.shell import run_training
from components.training.texts import encode_texts, load_states
from tests.components.training.datasets import make_dataset
from tests.components.training.tiny import PLAN, Tiny, weights_of

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SMALL: dict[str, Any] = {
    "text_encoder": {"width": 32, "layers": 1, "image_layers": 1, "heads": 2, "images": 64, "batch_size": 32},
    "autoencoder": {"channels": [8, 16], "norm_groups": 4, "images": 64, "batch_size": 16},
    "denoiser": {"channels": [16, 32], "norm_groups": 4, "heads": 2, "images": 64, "batch_size": 32},
}


def _recipe(root: Path, **run: Any) -> Recipe:
    settings = {"root": str(root), "cpus": 2, "object_store_mb": 200, **run}
    share = {"autoencoder": 0.5}  # of its images, in a retrain
    return Recipe.model_validate({"name": "small", "train": SMALL, "retrain": share, "run": settings})


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    recipe = _recipe(tmp_path_factory.mktemp("runs"))
    with ray_session(recipe.run):
        yield Context.of(recipe)


@pytest.fixture(scope="module")
def dataset(ctx: Context) -> Artifact:
    return make_dataset(ctx.store, WorldSpec(image_size=16), 80)[0]


@pytest.fixture(scope="module")
def parts(ctx: Context, dataset: Artifact) -> dict[str, Artifact]:
    text_encoder = stages.train_text_encoder(ctx, dataset)
    autoencoder = stages.train_autoencoder(ctx, dataset)
    latents = encode_latents(ctx, dataset, autoencoder)
    texts = encode_texts(ctx, dataset, text_encoder)
    denoiser = stages.train_denoiser(ctx, dataset, latents, text_encoder, autoencoder, texts=texts)
    model = stages.assemble_model(ctx, dataset, text_encoder, autoencoder, denoiser)
    return {
        "text_encoder": text_encoder, "autoencoder": autoencoder, "latents": latents, "texts": texts,
        "denoiser": denoiser, "model": model,
    }  # fmt: skip


def test_the_model_draws(parts: dict[str, Artifact]) -> None:
    from components.models.pipeline import Generator

    generator = Generator.load(parts["model"].local(), "cpu")
    pictures = generator.generate(["a small red circle"] * 2, [1, 2], steps=2, guidance_scale=2.0)
    assert pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8


def test_trainings_leave_their_record(ctx: Context, parts: dict[str, Artifact]) -> None:
    trainings = parts["model"].manifest.evidence["trainings"]
    for kind in ("text_encoder", "autoencoder", "denoiser"):
        manifest = parts[kind].manifest
        assert manifest.counts["images"] == 64 and trainings[kind]["steps"] == manifest.counts["steps"]
        assert trainings[kind]["curve"] == json.loads(parts[kind].path("curve.json").read_text())
        assert trainings[kind]["curve"][-1]["images"] == 64
        assert 0 <= manifest.circumstance["waiting_share"] < 1 and manifest.circumstance["workers"] == 2
    table = pq.read_table(parts["latents"].local() / "data", columns=["split"])
    rows = table["split"].to_pylist().count("train")
    batch, steps = SMALL["denoiser"]["batch_size"], trainings["denoiser"]["steps"]
    seed = parts["denoiser"].manifest.config["seed"]
    assert trainings["denoiser"]["order_digest"] == Order(rows, batch, seed).digest(steps)


def test_mlflow_has_what_a_training_shows(ctx: Context, parts: dict[str, Artifact]) -> None:
    from components.runtime.tracking import Tracker

    tracker = Tracker(ctx.registry_uri, ctx.recipe.name, ctx.home / "mlruns")
    for kind in ("text_encoder", "autoencoder", "denoiser"):
        found = tracker.find_run({"artifact": parts[kind].manifest.identity})
        assert found is not None
        run = tracker._client.get_run(found)
        shown = {
            "loss", "validation_loss", "gradient_norm", "images_per_second", "seconds_per_step", "waiting_share",
            "mfu", "memory_gb", "mean_images_per_second",
        }  # fmt: skip
        assert shown <= run.data.metrics.keys() and run.info.status == "FINISHED", kind
        curve = json.loads(parts[kind].path("curve.json").read_text())
        assert curve[-1]["validation_loss"] > 0 and "pace" not in curve[-1]
    sheets = [f.path for f in tracker._client.list_artifacts(found, "sheets")]
    assert "sheets/prompts.txt" in sheets and "sheets/images-000000064.png" in sheets


def test_a_dataset_smaller_than_a_batch_is_refused_before_anything_starts(ctx: Context) -> None:
    small, _ = make_dataset(ctx.store, WorldSpec(image_size=16), 12, seed=8)
    with pytest.raises(TrainingError, match=r"pictures to train on, a batch of the autoencoder has 16"):
        stages.train_autoencoder(ctx, small)


def test_done_once_is_done(ctx: Context, dataset: Artifact, parts: dict[str, Artifact]) -> None:
    assert stages.train_autoencoder(ctx, dataset).manifest == parts["autoencoder"].manifest


def test_latents_do_not_depend_on_the_workers(
    ctx: Context, dataset: Artifact, parts: dict[str, Artifact], tmp_path: Path
) -> None:
    from components.training.encoding import Job, encode_dataset

    alone = ctx.recipe.run.model_copy(update={"workers": 1})
    autoencoder = parts["autoencoder"]
    encode_dataset(dataset.local(), Job(str(autoencoder.local() / "model"), autoencoder.digest, str(tmp_path)), alone)
    for path in parts["latents"].paths("data/"):
        assert (tmp_path / "data" / path.name).read_bytes() == path.read_bytes()


def test_text_states_are_those_of_the_tower_and_damage_is_mended(
    ctx: Context, dataset: Artifact, parts: dict[str, Artifact]
) -> None:
    texts, clip = parts["texts"], parts["text_encoder"].local()
    ids = load_captions(dataset.local(), load_tokenizer(clip / "tokenizer"))
    named, states = load_states(texts.local(), ids.shape[1])
    assert named == load_ids(dataset.local()) and parts["denoiser"].manifest.inputs["text_states"] == texts.digest
    assert torch.allclose(states.float(), text_states(text_tower(load_clip(clip / "model")), ids), atol=4e-3)
    path = texts.paths("data/")[0]
    whole, rows = path.read_bytes(), pq.read_table(path)
    wrong = rows.to_pylist()
    wrong[0]["states"] = bytes(len(wrong[0]["states"]))
    pq.write_table(pa.Table.from_pylist(wrong, schema=rows.schema), path)
    if wrong[0]["split"] == "train":
        with pytest.raises(ArtifactError, match="do not match their checksum"):
            load_states(texts.local(), ids.shape[1])
    assert encode_texts(ctx, dataset, parts["text_encoder"]).digest == texts.digest
    assert path.read_bytes() == whole


def test_damaged_latents_are_encoded_again(ctx: Context, dataset: Artifact, parts: dict[str, Artifact]) -> None:
    latents = parts["latents"]
    victim, other = latents.paths("data/")
    whole, stamp = victim.read_bytes(), other.stat().st_mtime_ns
    victim.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
    with pytest.raises(ArtifactError, match="damaged"):
        stages.train_denoiser(ctx, dataset, latents, parts["text_encoder"], parts["autoencoder"], parts["denoiser"])
    again = encode_latents(ctx, dataset, parts["autoencoder"])
    assert again.digest == latents.digest and victim.read_bytes() == whole
    assert other.stat().st_mtime_ns == stamp  # what was sound is kept
    again.verify()


def test_pictures_of_several_sizes_are_trained_on_together(tmp_path: Path) -> None:
    """The three tasks, in this process, on a dataset of three buckets."""
    from components.training.encoding import Job, encode_piece
    from components.training.loop import train
    from components.training.task_autoencoder import AutoencoderTask
    from components.training.task_denoiser import DenoiserTask
    from components.training.task_text_encoder import TextEncoderTask

    config = _recipe(tmp_path).train
    sizes = ((16, 16), (24, 8), (8, 24))
    dataset, _ = make_dataset(Store(str(tmp_path / "store")), WorldSpec(image_size=16), 60, buckets=sizes)
    folders = {name: tmp_path / name for name in ("clip", "autoencoder", "denoiser")}
    plan = replace(PLAN, images=9 * 8, ema_decay=None)

    def trained(name: str, task: Any) -> Path:
        folders[name].mkdir()
        summary = train(task, plan, folders[name])
        order = Order([len(b) for b in load_pictures(dataset.local()).blocks], 8, PLAN.seed)
        assert summary["order_digest"] == order.digest(9)
        module = task.build()
        module.load_state_dict(weights_of(folders[name]), strict=False)
        module.finished().save_pretrained(folders[name] / "model")
        return folders[name] / "model"

    clip = trained("clip", TextEncoderTask(config.text_encoder, dataset.local(), 16))
    autoencoder = trained("autoencoder", AutoencoderTask(config.autoencoder, dataset.local(), 16))
    for path in dataset.paths("data/"):
        encode_piece({"path": str(path), "name": path.name}, Job(str(autoencoder), "a" * 64, str(tmp_path / "latents")))
    rest = (tmp_path / "latents", clip, dataset.local() / "tokenizer", 1.0, 4, 8)
    trained("denoiser", DenoiserTask(config.denoiser, dataset.local(), *rest))
    (tmp_path / "latents" / "data" / "part-00001.parquet").unlink()
    with pytest.raises(ArtifactError, match="not of this dataset's rows"):
        DenoiserTask(config.denoiser, dataset.local(), *rest).open(torch.nn.Identity(), torch.device("cpu"))


def test_a_retrain_starts_from_the_champion(ctx: Context, parts: dict[str, Artifact], dataset: Artifact) -> None:
    spec = WorldSpec(image_size=16)
    folder = dataset.local() / "tokenizer"
    newer, _ = make_dataset(ctx.store, spec, 90, seed=5, tokenizer=folder)
    again = stages.train_autoencoder(ctx, newer, parts["autoencoder"])
    assert again.manifest.inputs["start"] == parts["autoencoder"].digest
    assert again.manifest.counts["images"] < parts["autoencoder"].manifest.counts["images"]
    first = [json.loads(a.path("curve.json").read_text())[0]["loss"] for a in (again, parts["autoencoder"])]
    assert first[0] < first[1]  # it knew something already

    other, _ = make_dataset(ctx.store, spec, 40, seed=6, max_tokens=20)
    with pytest.raises(TrainingError, match=r"tokenizer of dataset.*is not that of text_encoder"):
        stages.train_text_encoder(ctx, other, parts["text_encoder"])
    wider = {**SMALL, "autoencoder": {**SMALL["autoencoder"], "channels": [8, 32]}}
    changed = Context(Recipe.model_validate({"name": "small", "train": wider}), ctx.store, ctx.home)
    with pytest.raises(TrainingError, match=r"another shape.*channels \[8, 16\] -> \[8, 32\]"):
        stages.train_autoencoder(changed, newer, parts["autoencoder"])


def test_two_workers_agree_with_one_at_either_end_of_zero(ctx: Context, tmp_path: Path) -> None:
    """Weights and their average, which ZeRO-3 keeps in shards, come out as one process makes them."""
    from components.training.loop import train

    folders = [tmp_path / name for name in ("one", "zero0", "zero3")]
    for folder in folders:
        folder.mkdir()
    train(Tiny(), replace(PLAN, zero_stage=0), folders[0])
    for stage, folder in zip((0, 3), folders[1:], strict=True):
        summary = run_training(Tiny(), replace(PLAN, zero_stage=stage), folder, ctx.recipe.run)
        assert summary["order_digest"] == json.loads((folders[0] / "summary.json").read_text())["order_digest"]
        for name in ("weights.safetensors", "model.safetensors"):
            theirs = weights_of(folders[0], name)
            for key, value in weights_of(folder, name).items():  # two ranks sum in another order than one
                assert (value - theirs[key]).abs().max() < 0.02, (stage, name, key)


def test_a_spoilt_loss_comes_back_as_one_error(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss is nan.*learning rates"):
        run_training(Tiny(spoil_at=3), PLAN, tmp_path, ctx.recipe.run)


def test_more_workers_than_processors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"3 workers of 1 threads do not fit on run.cpus=2"):
        run_training(Tiny(), PLAN, tmp_path, _recipe(tmp_path, workers=3).run)
