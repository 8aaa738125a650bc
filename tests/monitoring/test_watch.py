"""The watch on a real dataset artifact, a real logbook table and the real Evidently."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import DataError
from components.contracts.recipe import Recipe
from components.contracts.records import LOGBOOK_SCHEMA, SAMPLE_SCHEMA
from components.data.world import WorldSpec, phrasings, render, sample_scene
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome
from monitoring.drift_plot import drift_figure
from monitoring.watch import RECENT, decision_of, read_drift, report_path, watch, window

NEW = ("purple", "orange", "star")
OLD = WorldSpec().without(*NEW)
START = datetime.datetime(2026, 5, 4, 3, 2, 1, tzinfo=datetime.UTC)


def said(rng: np.random.Generator, spec: WorldSpec, need: tuple[str, ...] = ()) -> str:
    while True:
        texts = phrasings(sample_scene(rng, spec))
        text = texts[int(rng.integers(len(texts)))]
        if not need or any(word in text for word in need):
            return text


def turning_prompts() -> list[str]:
    rng = np.random.default_rng(7)
    return [said(rng, OLD) for _ in range(70)] + [said(rng, WorldSpec(), NEW) for _ in range(50)]


def make_dataset(ctx: Context, captions: int = 600) -> Artifact:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(captions):
        scene = sample_scene(rng, OLD)
        texts = phrasings(scene)
        rows.append({
            "id": f"{i:016x}", "url": f"http://example.org/{i}", "caption": texts[i % len(texts)], "tokens": [1, 2],
            "pixels": render(scene, 16, i, supersample=1).tobytes(), "height": 16, "width": 16, "bucket": "16x16",
            "cluster": f"{i:016x}", "split": "holdout" if i % 20 == 0 else "train", "source": 0,
        })  # fmt: skip
    draft = ctx.store.draft("dataset", {}, {"captions": captions})
    pq.write_table(pa.Table.from_pylist(rows[: captions // 2], SAMPLE_SCHEMA), draft.dir / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[captions // 2 :], SAMPLE_SCHEMA), draft.dir / "b.parquet")
    return draft.commit(Outcome(counts={"train": captions}))


def make_logbook(
    prompts: list[str], version: str = "1", failed: int = 0, first: int = 0, status: int = 200
) -> pa.Table:
    rng = np.random.default_rng(5)
    rows = []
    for i, prompt in enumerate(prompts):
        code = 500 if i < failed else status
        picture = rng.integers(0, 256, (16, 16, 3)) / 255.0
        stats = [*picture.mean((0, 1)), *picture.std((0, 1))] if code == 200 else None
        rows.append({
            "time": START + datetime.timedelta(seconds=first + i), "request_id": f"{version}-{first + i:06d}",
            "key_id": "k", "prompt": prompt, "seed": i, "steps": 16, "guidance_scale": 3.0, "model_version": version,
            "status": code, "error": None if code == 200 else "server_error", "seconds": 0.1, "truncated": False,
            "image_sha256": None, "image_stats": stats,
        })  # fmt: skip
    return pa.Table.from_pylist(rows, LOGBOOK_SCHEMA)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context.of(Recipe(name="watched", run={"root": str(tmp_path_factory.mktemp("runs"))}))


@pytest.fixture(scope="module")
def dataset(ctx: Context) -> Artifact:
    return make_dataset(ctx)


@pytest.fixture(scope="module")
def drifted(ctx: Context, dataset: Artifact) -> Artifact:
    return watch(ctx, dataset, make_logbook(turning_prompts()), "1")


def test_ordinary_prompts_are_kept(ctx: Context, dataset: Artifact) -> None:
    rng = np.random.default_rng(3)
    artifact = watch(ctx, dataset, make_logbook([said(rng, OLD) for _ in range(100)]), "1")
    assert decision_of(artifact).action == "keep"
    assert read_drift(artifact)["unknown_words"] == {}


def test_unseen_concepts_ask_for_a_retrain(ctx: Context, drifted: Artifact) -> None:
    decision, found = decision_of(drifted), read_drift(drifted)
    assert decision.action == "retrain"
    assert set(found["unknown_words"]) <= {*NEW, "stars"} and len(found["unknown_words"]) >= 3
    assert found["unknown_word_share"] == pytest.approx(50 / 120, abs=1e-6)
    assert found["windows"][0]["unknown_word_share"] == 0 and found["windows"][-1]["unknown_word_share"] == 1
    assert sum(part["prompts"] for part in found["windows"]) == 120
    assert found["columns"]["contrast"]["drifted"] and not found["columns"]["contrast"]["scored"]
    assert drifted.manifest.evidence["action"] == "retrain"
    assert pq.read_table(drifted.path("prompts.parquet")).num_rows == 120


def test_evidently_report_is_whole_and_asks_nothing_of_the_network(ctx: Context, drifted: Artifact) -> None:
    page = report_path(ctx, drifted).read_text()
    assert "unseen_words" in page and len(page) > 1_000_000
    assert '<script src="http' not in page and '<link rel="stylesheet" href="http' not in page


def test_same_window_is_done_once_and_is_equal_anew(
    ctx: Context, dataset: Artifact, drifted: Artifact, tmp_path: Path
) -> None:
    table = make_logbook(turning_prompts())
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    assert watch(ctx, dataset, shuffled, "1").url == drifted.url
    other = Context.of(Recipe(name="elsewhere", run={"root": str(tmp_path)}))
    assert watch(other, dataset, table, "1").digest == drifted.digest


def test_failures_of_the_version_roll_back_and_those_of_others_do_not(ctx: Context, dataset: Artifact) -> None:
    rng = np.random.default_rng(9)
    prompts = [said(rng, OLD) for _ in range(80)]
    failing, fine = make_logbook(prompts, "2", failed=8), make_logbook(prompts, "3", first=500)
    both = pa.concat_tables([failing, fine, make_logbook(["refused"] * 40, "3", first=900, status=400)])
    assert decision_of(watch(ctx, dataset, both, "2")).action == "roll_back"
    assert decision_of(watch(ctx, dataset, both, "3")).action == "keep"
    alone = decision_of(watch(ctx, dataset, both, "2", can_roll_back=False))
    assert alone.action == "keep" and "no earlier version" in alone.reasons[1]


def test_what_a_server_gave_up_and_what_got_slower_is_rolled_back(ctx: Context, dataset: Artifact) -> None:
    rng = np.random.default_rng(11)
    prompts = [said(rng, OLD) for _ in range(60)]
    few = make_logbook(prompts[:5], "5", failed=3)
    given_up = watch(ctx, dataset, few, "5", dropped="3 of its first 5 requests failed")
    assert decision_of(given_up).action == "roll_back"
    fast, slow = make_logbook(prompts, "6"), make_logbook(prompts, "7", first=100)
    slow = slow.set_column(slow.schema.get_field_index("seconds"), "seconds", pa.array([0.5] * 60, pa.float32()))
    patient = Context.of(Recipe(name="patient", watch={"max_latency_ratio": 2.0}, run=ctx.recipe.run))
    artifact = watch(patient, dataset, pa.concat_tables([fast, slow]), "7")
    assert decision_of(artifact).action == "roll_back" and "5.0 times" in decision_of(artifact).reasons[0]
    assert read_drift(artifact)["before"]["version"] == "6" and read_drift(artifact)["live"]["p95"] == 0.5


@pytest.mark.parametrize("number", [0, 1, 49])
def test_too_few_requests_are_no_ground_to_judge(ctx: Context, dataset: Artifact, number: int) -> None:
    artifact = watch(ctx, dataset, make_logbook(["a zeppelin"] * number), "1")
    assert decision_of(artifact).action == "keep"
    assert "too few" in decision_of(artifact).reasons[0]
    assert drift_figure(read_drift(artifact)).startswith("<svg")


def test_window_takes_the_latest_requests_and_each_once() -> None:
    table = make_logbook([f"prompt {i}" for i in range(RECENT + 10)])
    rows = window(pa.concat_tables([table, table]), "1")
    assert rows.num_rows == RECENT
    assert rows["prompt"][0].as_py() == "prompt 10"


def test_a_dataset_without_captions_is_refused(ctx: Context) -> None:
    empty = make_dataset(ctx, captions=2)
    with pytest.raises(DataError, match="holds 1 training captions"):
        watch(ctx, empty, make_logbook(["a red circle"] * 60), "1")


def test_figure_is_deterministic_readable_svg(drifted: Artifact) -> None:
    found = read_drift(drifted)
    svg = drift_figure(found)
    assert svg == drift_figure(json.loads(json.dumps(found)))
    for text in ("unseen words", "New words:", "as a share of the limit"):
        assert text in svg
    assert "<image" not in svg and 'href="http' not in svg
