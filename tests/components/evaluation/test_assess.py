"""A tiny random model under a tiny random judge, drawn by real Ray actors."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Assess, Recipe
from components.evaluation import generation
from components.evaluation.assess import PER_PROMPT_SCHEMA, Assessment, assess
from components.evaluation.generation import Drawn, chunks_of
from components.evaluation.judge import Judge, make_judge
from components.runtime.stage import Context
from components.runtime.storage import Artifact

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
    return make_judge(ctx, clip, dataset, SETS, Assess(steps=2, batch_size=2))


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
    assert rows[3]["correct"] is None and rows[3]["attributes"] is None and rows[0]["correct"] is not None
    wrong = next(r for r in rows if r["correct"] is False)
    assert "wrong" in wrong["reason"] and not all(json.loads(wrong["attributes"]).values())
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (32, 32)
    assert Image.open(artifact.path("sheet.png")).width > 500

    read = Assessment.read(artifact)
    assert read.model == model.digest and read.stamp == stamp and list(read.sets) == ["known", "new"]
    assert np.isnan(read.sets["known"].correct[3]) and read.sets["new"].prompts == tuple(SETS["new"])
    assert assess(ctx, model, judge) == artifact


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


def test_any_number_of_workers_and_any_kill_give_the_same_bytes(
    ctx: Context, model: Artifact, judge: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = assess(with_workers(ctx, 2), model, judge)
    shutil.rmtree(first.url)

    # killed after the second of three chunks
    drawn: list[str] = []
    real = generation.write_bytes

    def killed(url: str, data: bytes) -> None:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(Path(url).name)
        real(url, data)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            assess(with_workers(ctx, 1), model, judge)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "write_bytes", lambda url, data: (drawn.append(Path(url).name), real(url, data)))
        again = assess(with_workers(ctx, 1), model, judge)
    assert again.digest == first.digest
    assert sorted(drawn) == sorted(c.name for c in chunks_of(Judge.read(judge))), "no chunk was drawn twice"


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


def test_modules_import_without_their_vendors() -> None:
    import subprocess

    code = (
        "import sys, components.evaluation.assess, components.evaluation.release, components.evaluation.judge;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'transformers', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
