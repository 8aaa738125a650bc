"""The judge holds eyes, prompts, reference and protocol, and changes when one of them does."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from components.contracts.errors import ArtifactError, DataError
from components.contracts.recipe import Assess
from components.evaluation.extractor import ClipExtractor
from components.evaluation.judge import Judge, make_judge
from components.evaluation.metrics import Moments, clip_scores
from components.evaluation.prompts import caption_prompts, heldout_rows
from components.evaluation.protocol import difference, sampler_of
from components.runtime.stage import Context
from components.runtime.storage import Artifact

SETS = {"known": ["a red star", "a blue circle"], "new": ["a pink heart"]}


def test_judge_holds_all_that_is_measured_with(ctx: Context, clip: Artifact, dataset: Artifact) -> None:
    artifact = make_judge(ctx, clip, dataset, SETS, Assess())
    judge = Judge.read(artifact)
    assert judge.prompts == SETS
    assert {"steps", "guidance_scale", "seeds", "resize", "dtype", "sampler", "extractor"} <= set(judge.protocol)
    assert judge.protocol["prompts"]["n"] == {"known": 2, "new": 1}
    extractor = judge.extractor()
    for name, source in (("known", 0), ("new", 1)):
        rows = [r for r in heldout_rows(dataset, ["pixels", "source"]) if r["source"] == source]
        pictures = np.stack([np.frombuffer(r["pixels"], np.uint8).reshape(32, 32, 3) for r in rows])
        expected = Moments.of(extractor.features(pictures))
        assert judge.reference[name].count == len(rows) == judge.protocol["reference"]["n"][name]
        np.testing.assert_allclose(judge.reference[name].mean, expected.mean, atol=1e-5)
        np.testing.assert_allclose(judge.reference[name].scatter, expected.scatter, atol=1e-4)
    assert judge.reference["known"].mean.dtype == np.float64


def test_judge_is_the_same_bytes_when_made_again_and_another_when_anything_changes(
    ctx: Context, clip: Artifact, dataset: Artifact
) -> None:
    import shutil

    first = make_judge(ctx, clip, dataset, SETS)
    shutil.rmtree(first.url)
    assert make_judge(ctx, clip, dataset, SETS, Assess()).digest == first.digest
    assert make_judge(ctx, clip, dataset, SETS, Assess(sheet=3)).digest == first.digest, "the sheet measures nothing"
    others = [
        make_judge(ctx, clip, dataset, SETS, Assess(steps=9)),
        make_judge(ctx, clip, dataset, {"known": ["a red star"]}, Assess()),
        make_judge(ctx, clip, dataset, SETS, Assess(guidance_scale=1.5)),
    ]
    assert len({first.digest, *(o.digest for o in others)}) == 4
    stamps = [Judge.read(j).stamp("S") for j in (first, others[0])]
    assert {line.split(":")[0] for line in difference(*stamps)} == {"judge", "steps"}


def test_embeddings_equal_the_models_own(ctx: Context, clip: Artifact, dataset: Artifact) -> None:
    import torch

    extractor = Judge.read(make_judge(ctx, clip, dataset, SETS, Assess())).extractor()
    assert isinstance(extractor, ClipExtractor)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    texts = ["a red star", "a blue circle", "small"]
    features, images = extractor.look(pictures)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    tokens = extractor.tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt")
    with torch.no_grad():
        out = extractor.model(input_ids=tokens["input_ids"], pixel_values=pixels)
    cosine = torch.diagonal(out.logits_per_image).numpy() / extractor.model.logit_scale.exp().item()
    np.testing.assert_allclose(clip_scores(images, extractor.read(texts)), 100 * np.maximum(cosine, 0), atol=1e-3)
    assert features.shape == (3, 32) and images.shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)


def test_extractor_takes_any_size_and_refuses_what_is_no_picture(
    ctx: Context, clip: Artifact, dataset: Artifact
) -> None:
    extractor = Judge.read(make_judge(ctx, clip, dataset, SETS, Assess())).extractor()
    flat = np.full((1, 64, 48, 3), 200, np.uint8)
    np.testing.assert_allclose(extractor.features(flat), extractor.features(flat[:, :32, :32]), atol=1e-4)
    with pytest.raises(ValueError, match="uint8"):
        extractor.features(flat.astype(np.float32))
    assert extractor.read(["a " * 500]).shape == (1, 16), "a prompt that is too long is cut"


def test_bad_inputs_are_named(ctx: Context, clip: Artifact, dataset: Artifact, make: Callable[..., Artifact]) -> None:
    with pytest.raises(ArtifactError, match="holds no CLIP model"):
        make_judge(ctx, dataset, dataset, SETS, Assess())
    with pytest.raises(ArtifactError, match="holds no CLIP model"):
        make_judge(ctx, make(ctx, "judge_clip", {"config.json": b'{"model_type": "bert"}'}), dataset, SETS, Assess())
    with pytest.raises(DataError, match="empty prompt set"):
        make_judge(ctx, clip, dataset, {"known": []}, Assess())
    with pytest.raises(DataError, match="0 held-out pictures"):
        make_judge(ctx, clip, make(ctx, "dataset", {"x": b""}), SETS, Assess())
    with pytest.raises(ArtifactError, match="is no judge"):
        Judge.read(dataset)


def test_judge_takes_heldout_prompts(ctx: Context, clip: Artifact, dataset: Artifact) -> None:
    sets = caption_prompts(dataset, 8, 0)
    artifact = make_judge(ctx, clip, dataset, sets, Assess())
    assert artifact.manifest.counts["known_prompts"] == 8
    assert json.loads(artifact.path("prompts.json").read_text()) == sets


def test_sampler_names_settings_not_versions() -> None:
    one = '{"_class_name": "Euler", "_diffusers_version": "1", "shift": 3}'
    assert sampler_of(one) == sampler_of(one.replace('"1"', '"2"')) != sampler_of(one.replace("3", "4"))
    assert sampler_of('{"_class_name": "D", "clip": -Infinity}').startswith("D:")
    assert sampler_of(one).startswith("Euler:") and sampler_of(None) == "none (one pass)"


def test_a_model_without_a_sampler_may_be_held_against_one_with() -> None:
    one, other = sampler_of('{"_class_name": "A"}'), sampler_of('{"_class_name": "B"}')
    assert difference({"n": 1, "sampler": one}, {"n": 1, "sampler": sampler_of(None)}) == []
    assert len(difference({"n": 1, "sampler": one}, {"n": 2, "sampler": sampler_of(None)})) == 1
    assert len(difference({"sampler": one}, {"sampler": other})) == 1
