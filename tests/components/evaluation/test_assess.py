"""A tiny random model under a tiny random judge, drawn by real Ray actors."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.contracts.errors import ArtifactError, GateRefused
from components.contracts.recipe import Assess, Recipe, Release
from components.evaluation import generation, reference
from components.evaluation.assess import DIVERSITY_SCHEMA, PER_PROMPT_SCHEMA, Assessment, assess
from components.evaluation.gate import decide
from components.evaluation.generation import Drawn
from components.evaluation.judge import Judge, make_judge
from components.evaluation.reference import TRAIN
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.components.evaluation.eyes import save_dinov2
from tests.components.models.others import save_clip

pytestmark = pytest.mark.integration

SETS = {
    "known": ["a small red circle in the centre on a white background", "a large blue star", "a green cross", "a dog"],
    "new": ["a pink heart", "a pink heart on a grey background"],
}


@pytest.fixture(scope="module")
def pipeline_files(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> dict[str, bytes]:
    """A tiny random stock Stable Diffusion folder: 32 pixels, latents 16 x 16."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=2, projection_dim=16,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    autoencoder = AutoencoderKL(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=32,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipeline")
    StableDiffusionPipeline(
        vae=autoencoder, text_encoder=CLIPTextModel(text), unet=unet,
        tokenizer=PreTrainedTokenizerFast.from_pretrained(tokenizer_folder),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One context and one local Ray for the module: a worker takes seconds to import what it needs."""
    from components.runtime.cluster import ray_session

    run = {"root": str(tmp_path_factory.mktemp("runs")), "object_store_mb": 100}
    made = Context.of(Recipe.model_validate({"name": "t", "run": run}))
    with ray_session(made.recipe.run):
        yield made


@pytest.fixture(scope="module")
def model(ctx: Context, make: Callable[..., Artifact], pipeline_files: dict[str, bytes]) -> Artifact:
    return make(ctx, "model", pipeline_files)


@pytest.fixture(scope="module")
def judge(
    ctx: Context,
    make: Callable[..., Artifact],
    clip_files: dict[str, bytes],
    dataset_files: dict[str, bytes],
) -> Artifact:
    clip, dataset = make(ctx, "judge_clip", clip_files), make(ctx, "dataset", dataset_files)
    config = Assess(steps=2, batch_size=2, diversity_prompts=2, diversity_images=3)
    return make_judge(ctx, clip, dataset, SETS, config)


def with_workers(ctx: Context, workers: int) -> Context:
    recipe = ctx.recipe.model_copy(update={"run": ctx.recipe.run.model_copy(update={"workers": workers})})
    return Context(recipe, ctx.store, ctx.home)


def test_assessment_end_to_end(ctx: Context, model: Artifact, judge: Artifact) -> None:
    artifact = assess(ctx, model, judge)
    metrics = json.loads(artifact.path("metrics.json").read_text())
    stamp = metrics.pop("stamp")
    assert stamp["judge"] == judge.digest and stamp["steps"] == 2
    assert stamp["sampler"].startswith("DPMSolverMultistepScheduler:") and stamp["n"] == {"known": 4, "new": 2}
    assert set(metrics) == {"known", "new"}
    for name, numbers in metrics.items():
        assert {"fidelity", "fidelity.colour", "fidelity.shape", "frechet", "r_precision", "clip_score"} <= set(numbers)
        assert all(m["low"] <= m["value"] <= m["high"] for m in numbers.values())
        assert len({m["stamp"] for m in numbers.values()}) == 1
        assert numbers["frechet"]["n"] == len(SETS[name])
    assert metrics["known"]["fidelity"]["n"] == 3, "nobody can grade the dog"

    table = pq.read_table(artifact.path("per_prompt.parquet"))
    assert table.schema.equals(PER_PROMPT_SCHEMA)
    rows = table.to_pylist()
    assert [r["prompt"] for r in rows] == SETS["known"] + SETS["new"]
    assert [r["seed"] for r in rows] == list(range(70000, 70006))
    assert [r["category"] for r in rows] == ["single"] * 3 + [None] + ["single"] * 2
    kept = Judge.read(judge).kept()[TRAIN]
    assert all(r["nearest"] in kept.ids and r["nearest_distance"] >= 0 and r["safe"] is None for r in rows)
    assert rows[3]["correct"] is None and rows[3]["attributes"] is None and rows[0]["correct"] is not None
    wrong = next(r for r in rows if r["correct"] is False)
    assert "wrong" in wrong["reason"] and not all(json.loads(wrong["attributes"]).values())
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (32, 32)
    assert Image.open(artifact.path("sheet.png")).width > 500
    categories = json.loads(artifact.path("categories.json").read_text())
    assert categories["known"]["single"]["fidelity"]["n"] == 3 and set(categories) == {"known", "new"}

    again = pq.read_table(artifact.path("diversity.parquet"))
    assert again.schema.equals(DIVERSITY_SCHEMA) and again["index"].to_pylist() == [0, 0, 1, 1]
    assert again["prompt"].to_pylist() == [SETS["known"][i] for i in (0, 0, 1, 1)]
    assert metrics["known"]["diversity"]["n"] == 2 and "diversity" not in metrics["new"]

    read = Assessment.read(artifact)
    assert read.model == model.digest and read.stamp == stamp and list(read.sets) == ["known", "new"]
    assert np.isnan(read.sets["known"].correct[3]) and read.sets["new"].prompts == tuple(SETS["new"])
    assert assess(ctx, model, judge) == artifact


def test_how_long_it_took_is_a_circumstance_that_limits_may_name(
    ctx: Context, model: Artifact, judge: Artifact
) -> None:
    artifact = assess(ctx, model, judge)
    took = json.loads(artifact.path("circumstance/latency.json").read_text())
    assert took["device"] == "cpu" and took["dtype"] in ("fp32", "bf16") and took["hardware"] and took["threads"] == 1
    for name, batch in (("alone", 1), ("batched", 2)):
        assert took[name]["batch"] == batch and 0 < took[name]["low"] <= took[name]["seconds_an_image"]
    assert "latency" not in json.loads(artifact.path("metrics.json").read_text())["known"]
    read = Assessment.read(artifact)
    assert read.sets["known"].metrics["latency"].value == took["alone"]["seconds_an_image"]
    slow = decide(read, None, Release(limits={"latency": (None, 1e-9), "trained/memorised": (None, None)}))
    assert any(f.startswith("latency on known prompts is") and "above the limit" in f for f in slow.failures)


def test_the_stamp_says_what_the_pictures_were_drawn_in(ctx: Context, model: Artifact, judge: Artifact) -> None:
    read = Assessment.read(assess(ctx, model, judge))
    assert read.stamp["drawn_in"] == generation.dtype_expected(ctx.recipe.run)
    other = Assessment(read.model, read.stamp | {"drawn_in": "bf16 of another"}, read.sets)
    with pytest.raises(GateRefused, match=r"different protocols: drawn_in: .* against bf16 of another"):
        decide(read, other, Release())


def test_extractors_and_graders_of_the_recipe(
    ctx: Context, model: Artifact, clip_files: dict[str, bytes], dataset_files: dict[str, bytes],
    make: Callable[..., Artifact], tmp_path: Path,
) -> None:  # fmt: skip
    """One assessment with everything that a recipe may add, on tiny models saved on the spot."""
    sources = [
        {"kind": "dinov2", "source": str(save_dinov2(tmp_path / "dino"))},
        {"kind": "clip", "source": str(save_clip(tmp_path / "clip")), "name": "big"},
    ]
    config = Assess.model_validate(
        {
            "steps": 1, "batch_size": 4, "diversity_prompts": 1, "diversity_images": 2, "extractors": sources,
            "concepts": {"red": -2.0}, "atoms": "tests.components.evaluation.atoms_of_tests:mentions_a_dog",
        }
    )  # fmt: skip
    clip, dataset = make(ctx, "judge_clip", clip_files), make(ctx, "dataset", dataset_files)
    judge = make_judge(ctx, clip, dataset, SETS, config)
    assert {"extractors/dinov2/model.safetensors", "extractors/big/tokenizer.json"} <= set(judge.manifest.files)
    artifact = assess(ctx, model, judge)
    metrics = json.loads(artifact.path("metrics.json").read_text())
    assert {
        "frechet.dinov2", "kid.dinov2", "memorised.dinov2", "cmmd.big", "clip_score.big",
        "r_precision.big", "frechet.big", "safe",
    } <= set(metrics["known"])  # fmt: skip
    assert metrics["known"]["safe"]["value"] == 0, "every cosine is over -2"
    assert metrics["stamp"]["extractors"]["dinov2"]["kind"] == "dinov2"
    rows = pq.read_table(artifact.path("per_prompt.parquet")).to_pylist()
    dog = next(r for r in rows if r["prompt"] == "a dog")
    assert dog["correct"] is False and dog["reason"] == "no dog was looked for" and json.loads(dog["attributes"]) == {}
    assert json.loads(dog["concepts"]).keys() == {"red"} and dog["safe"] is False
    assert metrics["known"]["fidelity"]["n"] == 4, "with a grader of one's own the dog counts too"

    cached = sorted((ctx.home / "features").glob("*/*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in cached}
    other = make_judge(ctx, clip, dataset, {"known": SETS["known"]}, config)
    assert {path: path.stat().st_mtime_ns for path in cached} == before and other.digest != judge.digest
    assert sorted((ctx.home / "features").glob("*/*.safetensors")) == cached, "no picture was looked at again"
    for one, two in ((Judge.read(judge).kept()[s], Judge.read(other).kept()[s]) for s in ("holdout", "train")):
        np.testing.assert_array_equal(one.rows("known", "dinov2"), two.rows("known", "dinov2"))


def test_real_pictures_seen_on_actors_are_those_seen_here(
    ctx: Context, clip_files: dict[str, bytes], dataset_files: dict[str, bytes], make: Callable[..., Artifact],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clip, dataset = make(ctx, "judge_clip", clip_files), make(ctx, "dataset", dataset_files)
    source = {"kind": "dinov2", "source": str(save_dinov2(tmp_path / "dino", seed=5))}
    kept = []
    for steps, start in ((7, 512), (8, 1)):  # from so many pictures on actors are used
        monkeypatch.setattr(reference, "_ACTORS_FROM", start)
        config = Assess.model_validate({"steps": steps, "extractors": [source]})
        elsewhere = Context(ctx.recipe, ctx.store, tmp_path / str(start))  # with a cache of its own
        kept.append(Judge.read(make_judge(elsewhere, clip, dataset, SETS, config)).kept())
    for split in ("holdout", "train"):
        one, two = (each[split] for each in kept)
        assert one.ids == two.ids and one.sets == two.sets
        for name, what in (("judge", "features"), ("judge", "embeddings"), ("dinov2", "features")):
            np.testing.assert_allclose(one.arrays[name][what], two.arrays[name][what], atol=1e-5)


def test_pictures_are_those_of_the_model_alone(ctx: Context, model: Artifact, judge: Artifact) -> None:
    from components.models.pipeline import Generator

    rows = pq.read_table(assess(ctx, model, judge).path("per_prompt.parquet")).to_pylist()[:2]
    pictures = Generator.load(model.local()).generate(
        [r["prompt"] for r in rows], [r["seed"] for r in rows], steps=2, guidance_scale=3.0
    )
    kept = [np.asarray(Image.open(io.BytesIO(row["image"])), float) for row in rows]
    # Another batch size may pick another kernel, which rounds otherwise: a few levels, never another picture.
    for mine, picture, other in zip(kept, pictures, reversed(kept), strict=True):
        assert np.abs(mine - picture).mean() < 4 < 10 < np.abs(other - picture).mean()


def test_any_number_of_workers_gives_the_same_bytes(ctx: Context, model: Artifact, judge: Artifact) -> None:
    """After a kill too: see test_killed.py."""
    first = assess(with_workers(ctx, 2), model, judge)
    shutil.rmtree(first.url)
    assert assess(with_workers(ctx, 1), model, judge).digest == first.digest


def test_a_damaged_model_is_named_from_inside_the_worker(
    ctx: Context, judge: Artifact, make: Callable[..., Artifact]
) -> None:
    with pytest.raises(ArtifactError, match="cannot be opened as a model"):
        assess(ctx, make(ctx, "model", {"model_index.json": b"{}"}), judge)


def test_drawn_survives_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = Drawn(
        rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8), *(rng.random((2, 3), dtype=np.float32) for _ in range(3)),
        [None, {"correct": False, "attributes": {"colour": False}, "reason": "wrong colour"}],
    )  # fmt: skip
    (tmp_path / "x").write_bytes(one.to_bytes())
    again = Drawn.read(tmp_path / "x")
    for name in ("pictures", "features", "images", "texts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(one, name))
    assert again.grades == one.grades and len(Drawn.joined([one, again]).grades) == 4
    two = replace(one, more={"dino/features": np.ones((2, 5), np.float32)}, drawn_in="fp32")
    (tmp_path / "y").write_bytes(two.to_bytes())
    read = Drawn.read(tmp_path / "y")
    assert read.drawn_in == "fp32" and read.more["dino/features"].shape == (2, 5)
    assert Drawn.joined([read, replace(read, drawn_in="bf16")]).drawn_in == "bf16, fp32", "of two kinds of machines"


def test_modules_import_without_their_vendors() -> None:
    import subprocess

    code = (
        "import sys, components.evaluation.assess, components.evaluation.release, components.evaluation.judge;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'transformers', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
