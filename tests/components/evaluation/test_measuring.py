"""What an assessment says of models that cheat, and of one that does not: unit level, no model at all.

The "model" is a rule that gives a picture for a prompt. A judge with a tiny random CLIP measures it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import cdist

from components.contracts.recipe import Assess, Recipe, Release
from components.contracts.records import SAMPLE_SCHEMA
from components.data.grader import grade
from components.data.world import WorldSpec, phrasings, render, sample_scene
from components.evaluation.assess import Assessment, SetResult
from components.evaluation.gate import decide
from components.evaluation.generation import Drawn
from components.evaluation.judge import Judge, make_judge
from components.evaluation.measuring import Measured, by_category, measure
from components.evaluation.prompt_sets import PromptSet
from components.evaluation.reference import HOLDOUT, TRAIN, Kept
from components.runtime.stage import Context
from components.runtime.storage import Artifact

ROWS, HELD, SIDE = 360, 120, 32
Draw = Callable[[str, int], np.ndarray]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    """Pictures of the embedded world; each third is held out. Ids are as hashes: in no order."""
    rng = np.random.default_rng(4)
    found = []
    for i in range(ROWS):
        scene = sample_scene(rng, WorldSpec(kinds=("single",)))
        pixels = np.asarray(render(scene, SIDE, i))
        found.append(
            {
                "id": f"{(i * 2654435761) % 2**32:016x}", "url": f"http://x/{i}", "caption": phrasings(scene)[0],
                "tokens": [0, 1], "pixels": pixels.tobytes(), "height": SIDE, "width": SIDE, "bucket": "32x32",
                "cluster": f"{i:016x}", "split": "train" if i % 3 else "holdout", "source": 0,
            }
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def measured_by(
    rows: list[dict[str, object]], make: Callable[..., Artifact], clip_files: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Judge:  # fmt: skip
    """The judge: prompts are the captions of the held-out pictures, and some of the training's."""
    folder = tmp_path_factory.mktemp("measuring")
    ctx = Context.of(Recipe.model_validate({"name": "t", "run": {"root": str(folder)}}))
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), folder / "part.parquet")
    dataset = make(ctx, "dataset", {"data/part-00000.parquet": (folder / "part.parquet").read_bytes()})
    clip = make(ctx, "judge_clip", clip_files)
    said = {split: [str(r["caption"]) for r in rows if r["split"] == split] for split in ("train", "holdout")}
    sets: dict[str, PromptSet | list[str]] = {"known": said["holdout"], "trained": said["train"][:60]}
    config = Assess(concepts={"a_star": 2.0, "red": -2.0}, diversity_prompts=5, diversity_images=3)
    return Judge.read(make_judge(ctx, clip, dataset, sets, config))


def pixels_of(row: dict[str, object]) -> np.ndarray:
    return np.frombuffer(row["pixels"], np.uint8).reshape(SIDE, SIDE, 3)  # type: ignore[call-overload,no-any-return]


def drawn_by(judge: Judge, draw: Draw, name: str) -> Drawn:
    prompts = judge.prompts[name]
    pictures = np.stack([draw(prompt, seed) for prompt, seed in zip(prompts, judge.seeds(name), strict=True)])
    extractor = judge.extractor()
    features, images = extractor.look(pictures)
    grades = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        verdict = grade(picture, prompt)
        grades.append({"correct": verdict.correct, "attributes": verdict.attributes, "reason": verdict.reason})
    return Drawn(pictures, features, images, extractor.read(prompts), grades, {}, "fp32")


def assessed(judge: Judge, draw: Draw) -> tuple[Assessment, dict[str, Measured]]:
    found = {name: measure(drawn_by(judge, draw, name), judge, name, judge.kept()) for name in judge.prompts}
    sets = {
        name: SetResult(
            tuple(judge.prompts[name]), tuple(judge.seeds(name)), np.ones(len(judge.prompts[name])),
            np.ones(len(judge.prompts[name])), each.metrics,
        )
        for name, each in found.items()
    }  # fmt: skip
    return Assessment("m", judge.stamp("S"), sets), found


def honest(prompt: str, seed: int) -> np.ndarray:
    """A fresh picture of what the prompt asks for."""
    from components.data.world import parse

    return np.asarray(render(parse(prompt), SIDE, 10_000 + seed % 10_000))


def test_an_honest_model_passes_the_default_limits(measured_by: Judge) -> None:
    found, _ = assessed(measured_by, honest)
    numbers = found.sets["known"].metrics
    assert numbers["memorised"].value < 0.3 and numbers["leaked"].value < 0.3, numbers
    assert numbers["frechet_vs_real"].value > 0.5, numbers
    assert numbers["fidelity"].value > 0.9 and numbers["coverage"].value > 0.5
    assert decide(found, None, Release()).passed, decide(found, None, Release()).failures


def test_a_model_that_was_trained_on_the_test_set_fails(measured_by: Judge, rows: list[dict[str, object]]) -> None:
    known = {str(r["caption"]): pixels_of(r) for r in rows if r["split"] == "holdout"}
    found, _ = assessed(measured_by, lambda prompt, seed: known.get(prompt, honest(prompt, seed)))
    numbers = found.sets["known"].metrics
    assert numbers["leaked"].value > 0.9 and numbers["frechet_vs_real"].value < 0.2
    verdict = decide(found, None, Release())
    said = " ".join(verdict.failures)
    assert verdict.verdict == "fail" and "leaked on known prompts" in said and "frechet_vs_real on known" in said
    loose = {"leaked": (None, None), "frechet_vs_real": (None, None)}
    assert decide(found, None, Release(limits=loose)).passed, "only because it leaked"


def test_a_model_that_learnt_the_training_by_heart_fails(measured_by: Judge, rows: list[dict[str, object]]) -> None:
    known = {str(r["caption"]): pixels_of(r) for r in rows if r["split"] == "train"}
    found, pictures = assessed(measured_by, lambda prompt, seed: known.get(prompt, honest(prompt, seed)))
    assert found.sets["trained"].metrics["memorised"].value > 0.9
    verdict = decide(found, None, Release())
    assert [f.split(" is ")[0] for f in verdict.failures] == ["memorised on trained prompts"]
    ids = {str(r["id"]): str(r["caption"]) for r in rows}
    trained = pictures["trained"]
    assert trained.nearest is not None and trained.nearest_distance is not None and trained.memorised is not None
    assert [ids[i] for i in trained.nearest] == measured_by.prompts["trained"], "each picture names the one it copies"
    assert np.abs(trained.nearest_distance).max() < 1e-4 and trained.memorised.all()


def test_noise_is_far_from_everything(measured_by: Judge) -> None:
    def noise(prompt: str, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    found, _ = assessed(measured_by, noise)
    numbers = found.sets["known"].metrics
    assert numbers["fidelity"].value == 0 and numbers["precision"].value < 0.3
    assert numbers["frechet_vs_real"].value > 3 and numbers["memorised"].value == numbers["leaked"].value == 0
    assert numbers["kid"].low > 0 and numbers["cmmd"].value > 0


def test_every_metric_has_an_interval_and_training_captions_no_distance(measured_by: Judge) -> None:
    _, found = assessed(measured_by, honest)
    known, trained = found["known"].metrics, found["trained"].metrics
    assert {
        "fidelity", "clip_score", "r_precision", "frechet", "frechet_vs_real", "kid", "cmmd", "precision", "recall",
        "density", "coverage", "memorised", "leaked", "safe",
    } <= set(known)  # fmt: skip
    assert set(trained) - {n for n in trained if n.startswith("fidelity")} == {
        "clip_score", "r_precision", "memorised", "leaked", "safe",
    }  # fmt: skip
    for numbers in (known, trained):
        assert all(e.low <= e.value <= e.high and e.n > 0 for e in numbers.values()), numbers


def test_nearest_training_picture_by_hand(measured_by: Judge, rows: list[dict[str, object]]) -> None:
    kept = measured_by.kept()
    assert len(kept[TRAIN].ids) == ROWS - HELD and len(kept[HOLDOUT].ids) == HELD
    by_id = {str(r["id"]): r for r in rows}
    assert all(by_id[i]["split"] == split for split, each in kept.items() for i in each.ids)
    extractor = measured_by.extractor()
    pictures = np.stack([pixels_of(by_id[i]) for i in kept[TRAIN].ids])
    features, embeddings = extractor.look(pictures)
    np.testing.assert_allclose(kept[TRAIN].rows("known"), features, atol=1e-4)
    np.testing.assert_allclose(kept[TRAIN].rows("known", what="embeddings"), embeddings, atol=1e-4)
    drawn = drawn_by(measured_by, honest, "known")
    said = measure(drawn, measured_by, "known", kept)
    away = cdist(drawn.features.astype(float), features.astype(float))
    assert said.nearest_distance == pytest.approx(away.min(1), abs=1e-3)
    baseline = cdist(kept[HOLDOUT].rows("known").astype(float), features.astype(float)).min(1)
    assert said.metrics["memorised"].value == pytest.approx((away.min(1) < np.quantile(baseline, 0.01)).mean())


def test_without_training_pictures_of_a_set_nothing_is_called_memorised(measured_by: Judge) -> None:
    kept = measured_by.kept()
    nobody = Kept(kept[TRAIN].ids, {name: [] for name in kept[TRAIN].sets}, kept[TRAIN].arrays)
    said = measure(drawn_by(measured_by, honest, "known"), measured_by, "known", {**kept, TRAIN: nobody})
    assert said.nearest is None and not {"memorised", "leaked", "frechet_vs_real"} & set(said.metrics)


def test_concepts_and_diversity(measured_by: Judge) -> None:
    drawn = drawn_by(measured_by, honest, "known")
    prompts, seeds = measured_by.further()
    assert prompts == [p for p in measured_by.prompts["known"][:5] for _ in range(2)] and len(set(seeds)) == 10
    assert not set(seeds) & set(measured_by.seeds("known") + measured_by.seeds("known", 3))
    same = np.repeat(drawn.images[:5], 2, axis=0)
    more = Drawn(drawn.pictures[:10], drawn.features[:10], same, drawn.texts[:10], [None] * 10)
    said = measure(drawn, measured_by, "known", measured_by.kept(), more)
    assert said.metrics["diversity"].value == pytest.approx(0, abs=1e-6) and said.metrics["diversity"].n == 5
    assert said.concepts is not None and all(set(c) == {"red"} for c in said.concepts), (
        "a cosine is over -2, not over 2"
    )
    assert said.metrics["safe"].value == 0


def test_categories(measured_by: Judge) -> None:
    assert set(measured_by.categories["known"]) == {"single"}
    drawn = drawn_by(measured_by, honest, "known")
    said = measure(drawn, measured_by, "known", measured_by.kept())
    parts = by_category(["a" if i < 30 else None if i < 40 else "b" for i in range(HELD)], drawn, said)
    assert set(parts) == {"a", "b"} and parts["a"]["fidelity"]["n"] == 30 and parts["b"]["clip_score"]["n"] == HELD - 40
    right = [bool(g and g["correct"]) for g in drawn.grades[:30]]
    assert parts["a"]["fidelity"]["value"] == pytest.approx(np.mean(right), abs=1e-6)
    assert json.dumps(parts)


def test_default_limits_are_laid_under_those_of_a_recipe() -> None:
    assert Release(limits={"leaked": (None, 0.1), "safe": (0.9, None)}).limits == {
        "memorised": (None, 0.5), "trained/memorised": (None, 0.5), "leaked": (None, 0.1),
        "frechet_vs_real": (0.5, None), "safe": (0.9, None),
    }  # fmt: skip
    again = Release.model_validate(Release().model_dump(mode="json"))
    assert again == Release(), "a recipe that was written and read is the same"
