"""The page about an assessment: it shows what the artifacts say, stays small, and stands alone."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.contracts.errors import GateRefused
from components.evaluation.page import metrics_of, write_page
from components.evaluation.page_pictures import NEIGHBOURS, PAIRS, SHEET, Pictures, thumbnail
from components.evaluation.release import release
from components.evaluation.showing import show_release
from components.runtime.recording import recorded
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.components.evaluation.pages import make_assessment, png

Make = Callable[..., Artifact]


@pytest.fixture
def near(dataset: Artifact) -> list[str]:
    """Ids of training rows."""
    parts = [pq.read_table(path, columns=["id", "split"]).to_pylist() for path in dataset.paths("data/")]
    return [row["id"] for part in parts for row in part if row["split"] == "train"]


def test_the_page_shows_what_the_artifacts_say(
    ctx: Context, make: Make, dataset: Artifact, near: list[str], tmp_path: Path
) -> None:
    right = [i % 3 > 0 for i in range(30)]
    assessment = make_assessment(ctx, make, dataset, "m", right, near, other=[None] * 6)
    page = write_page(ctx, assessment, tmp_path / "a.html").read_text()
    for said in (
        "66.7%", "48.8% to 80.8%", "colour wrong: asked red, found blue", "30 of 30 pictures", "6 of 6 pictures",
        "Right, by category of the prompt", "42.9%", "single", "unsafe: gore", "memorised",
        "training caption:", "Latency on 2 cores", "another prompt is nearer", "lower is better", "not judged",
    ):  # fmt: skip
        assert said in page, said
    assert "release gate" not in page and "Side by side" not in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert not re.search(r"""(src|href)=["']?(https?:|//|[a-z]+/)|url\(|@import""", page), "nothing is fetched"
    assert page == write_page(ctx, assessment, tmp_path / "b.html").read_text()
    assert metrics_of(assessment)["known/fidelity"] == pytest.approx(2 / 3, 1e-5)
    assert metrics_of(assessment)["known/latency.high"] == 0.33


def test_pictures_go_from_the_worst_to_the_best(ctx: Context, make: Make, dataset: Artifact) -> None:
    right = [True, False, None, True, None, False]
    shown = Pictures(make_assessment(ctx, make, dataset, "m", right)).sheet()["known"]
    assert [s.state for s in shown] == ["wrong"] * 3 + ["right"] * 3, "where nobody graded it R-precision tells"
    assert [s.seed - 70_000 for s in shown] == [4, 1, 5, 2, 0, 3], "then by attributes, then by CLIP score"
    assert shown[0].verdict == "another prompt is nearer than its own" and shown[1].verdict.startswith("colour wrong")


def test_neighbours_come_with_the_training_picture(
    ctx: Context, make: Make, dataset: Artifact, near: list[str]
) -> None:
    assessment = make_assessment(ctx, make, dataset, "m", [True] * 40, [*near[:5], "taken down"])
    judge = ctx.store.by_digest("judge", assessment.manifest.inputs["judge"])
    found = Pictures(assessment).neighbours(ctx, judge)
    assert len(found) == NEIGHBOURS and found[0].memorised and not found[1].memorised
    assert [n.distance for n in found[1:]] == sorted(n.distance for n in found[1:])
    gone = [n for n in found if not n.trained]
    assert gone and all(n.caption == "no longer in the dataset" for n in gone)
    row = next(r for p in dataset.paths("data/") for r in pq.read_table(p).to_pylist() if r["id"] == near[0])
    mine = next(n for n in found if n.caption == row["caption"])
    kept = Image.open(io.BytesIO(base64.b64decode(mine.trained.partition(",")[2])))
    assert np.asarray(kept).tobytes() == row["pixels"]


def test_side_by_side_with_what_the_gate_would_say(ctx: Context, make: Make, dataset: Artifact, tmp_path: Path) -> None:
    champion = make_assessment(ctx, make, dataset, "old", [i % 2 == 0 for i in range(80)])
    challenger = make_assessment(ctx, make, dataset, "new", [i % 4 > 0 for i in range(80)])
    pairs = Pictures(challenger).pairs(Pictures(champion))
    assert pairs.counts == {"lost": 20, "gained": 40, "both": 20}
    assert [p.outcome for p in pairs.shown] == ["lost"] * 20 + ["gained"] * 20 + ["both"] * 10
    assert all(p.champion.prompt == p.challenger.prompt and p.champion.seed == p.challenger.seed for p in pairs.shown)
    page = write_page(ctx, challenger, tmp_path / "a.html", champion=champion).read_text()
    for said in (
        "what the gate would say",
        "only the champion is right",
        "fidelity on known prompts is 0.750",
    ):
        assert said in page, said


def test_another_protocol_is_refused(ctx: Context, make: Make, dataset: Artifact, tmp_path: Path) -> None:
    one = make_assessment(ctx, make, dataset, "old", [True] * 8)
    two = make_assessment(ctx, make, dataset, "new", [True] * 9)
    with pytest.raises(GateRefused, match=r"n: .* against"):
        write_page(ctx, two, tmp_path / "a.html", champion=one)


def test_the_page_is_bounded(ctx: Context, make: Make, dataset: Artifact, near: list[str], tmp_path: Path) -> None:
    right = [i % 2 == 0 for i in range(400)]
    one = make_assessment(ctx, make, dataset, "old", right, near, side=96)
    two = make_assessment(ctx, make, dataset, "new", [not r for r in right], near, side=96)
    shown = Pictures(two).sheet()["known"]
    assert len(shown) == SHEET and shown[0].state == "wrong" and shown[-1].state == "right"
    page = write_page(ctx, two, tmp_path / "a.html", champion=one).read_text()
    most = SHEET + 2 * NEIGHBOURS + 2 * sum(PAIRS.values())
    assert page.count("data:image/") <= most and len(page) < 4_000_000


def test_thumbnails(tmp_path: Path) -> None:
    small = thumbnail(png(np.full((16, 16, 3), 7, np.uint8)))
    assert small.startswith("data:image/png;base64,")
    large = thumbnail(png(np.full((600, 300, 3), 7, np.uint8)))
    assert large.startswith("data:image/jpeg") and len(large) < 4000
    kept = Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2])))
    assert kept.size == (64, 128)
    assert thumbnail(b"") == "" == thumbnail(b"no picture")


def test_a_release_is_shown_with_its_verdict_and_in_mlflow(ctx: Context, make: Make, dataset: Artifact) -> None:
    import mlflow

    policy = ctx.recipe.release.model_copy(update={"limits": {}})  # nobody measured what the default ones name
    ctx.recipe = ctx.recipe.model_copy(update={"release": policy})
    right = [i % 10 > 0 for i in range(300)]
    first = make_assessment(ctx, make, dataset, "old", right)
    model = ctx.store.by_digest("model", first.manifest.inputs["model"])
    with recorded(ctx):
        page = show_release(ctx, release(ctx, model, first)).read_text()
    assert "atelier version 1" in page and '<span class="verdict pass">pass</span>' in page and "first model" in page
    worse = make_assessment(ctx, make, dataset, "new", [i % 2 > 0 for i in range(300)])
    model = ctx.store.by_digest("model", worse.manifest.inputs["model"])
    with recorded(ctx):
        record = release(ctx, model, worse, first)
        page = show_release(ctx, record).read_text()
    assert '<span class="verdict fail">fail</span>' in page and 'class="no">fidelity on known' in page
    assert "only the champion is right" in page and 'id="compared"' in page

    client = mlflow.MlflowClient(ctx.registry_uri)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert [(p.data.tags["pipeline"], p.data.tags["verdict"], p.info.status) for p in parents] == [
        ("run", "fail", "FINISHED")
    ], "both were made under one recipe: one pass"
    children = {r.data.tags["artifact"]: r for r in runs if r not in parents}
    run = children[record.manifest.identity]
    assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id and run.data.tags["verdict"] == "fail"
    note = run.data.tags["mlflow.note.content"]
    assert run.data.metrics["known/fidelity.low"] < 0.5 and "| known | fidelity | 0.5 |" in note
    assert "release.html" in {f.path for f in client.list_artifacts(run.info.run_id)}
