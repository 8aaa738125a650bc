"""The page about a dataset: it shows what the artifacts say, and needs no other file."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.contracts.errors import InputError
from components.contracts.recipe import Recipe
from components.data.inspecting import funnel, inspect_dataset
from components.data.preparing import prepare
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.cli import app
from tests.components.data.collections import Shown, drawn, make_collection

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

ROWS = [
    *(Shown(drawn(i, (96, 64) if i % 2 else (64, 64)), f"picture {i}") for i in range(50)),
    Shown(drawn(1, (96, 64)), "not what the other says <script>alert(1)</script>", source=(999, 666)),
    Shown(drawn(60, (12, 12)), "tiny, ask joe@example.com"),
    Shown(None, "broken", data=b"no picture"),
    Shown(None, "gone"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, list[Artifact]]:
    settings = {"min_rows": 5, "alternatives": True, "buckets": [1.0, 1.5], "min_entropy": 1.0}
    run = {"root": str(tmp_path_factory.mktemp("runs")), "object_store_mb": 200}
    ctx = Context.of(Recipe.model_validate({"name": "page", "prepare": settings, "run": run}))
    collection = make_collection(ctx.store, ROWS)
    return prepare(ctx, [collection]), collection, ctx.store.list("scores")


def test_the_page_shows_what_the_artifacts_say(made: tuple[Artifact, Artifact, list[Artifact]], tmp_path: Path) -> None:
    dataset, collection, scores = made
    page = inspect_dataset(dataset, [collection], scores, tmp_path / "page.html").read_text()
    steps = funnel(dataset, [collection])
    assert [s.left for s in steps] == [54, 53, 50]
    assert all(a.left - sum(b.lost.values()) == b.left for a, b in pairwise(steps))
    for reason in {**collection.manifest.dropped, **dataset.manifest.dropped}:
        assert reason in page
    shown = ["min_side", "keeps ≥ <b>16</b>: 1 beyond", "min_entropy", "max_repetition</code> is off", "40x24", "32x32"]
    for said in (*shown, "also: picture 1", "1 members say something else", "not found"):
        assert said in page, said
    assert page.count("data:image/png;base64,") >= 100
    assert "(no caption)" not in page and "no picture</div>" in page  # of the broken one


def test_the_page_stands_alone_and_is_the_same_again(
    made: tuple[Artifact, Artifact, list[Artifact]], tmp_path: Path
) -> None:
    dataset, collection, scores = made
    page = inspect_dataset(dataset, [collection], scores, tmp_path / "a.html").read_text()
    assert not re.search(r"<script|<link|src=\"http|@import|url\(", page)
    assert "&lt;script&gt;alert(1)" in page  # captions are text
    assert "tiny, ask [email]" in page and "joe@" not in page
    assert inspect_dataset(dataset, [collection], scores, tmp_path / "b.html").read_text() == page


def test_the_command_writes_either_page_or_says_what_it_can(
    made: tuple[Artifact, Artifact, list[Artifact]], tmp_path: Path
) -> None:
    home = Path(made[0].url).parents[2]
    recipe = tmp_path / "page.yaml"
    recipe.write_text(f"name: page\nrun: {{root: '{home.parent}'}}\n")
    for what in ("dataset", "duplicates"):
        done = CliRunner().invoke(app, ["inspect", what, "--recipe", str(recipe)])
        assert done.exit_code == 0 and done.output.strip() == str(home / f"{what}.html"), done.output
        assert made[0].digest[:12] in (home / f"{what}.html").read_text()
    elsewhere = CliRunner().invoke(app, ["inspect", "--recipe", str(recipe), "--output", str(tmp_path / "x.html")])
    assert elsewhere.exit_code == 0 and (tmp_path / "x.html").exists()
    wrong = CliRunner().invoke(app, ["inspect", "weather", "--recipe", str(recipe)])
    assert isinstance(wrong.exception, InputError) and "dataset or duplicates" in str(wrong.exception)


def test_large_pictures_are_made_smaller_on_the_page() -> None:
    from components.data.inspecting import _picture

    small, large = drawn(1, (64, 40)), drawn(2, (512, 384))
    assert _picture(small.tobytes(), small.size).startswith("data:image/png")
    shown = _picture(large.tobytes(), large.size)
    assert shown.startswith("data:image/jpeg") and len(shown) < 12_000
