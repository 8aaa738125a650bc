"""`atelier forget` as a command: what it prints, what it refuses, and that it asks the real registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import tests.components.data.takedown_store as made
from components.contracts.errors import AtelierError
from components.runtime.tracking import Tracker
from pipelines.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "gone.yaml"
    path.write_text(f"name: gone\nrun: {{root: {tmp_path}}}\n")
    return str(path)


def forget(recipe: str, *words: str) -> str:
    result = CliRunner().invoke(app, ["forget", "--recipe", recipe, *words])
    if isinstance(result.exception, AtelierError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_story(recipe: str, tmp_path: Path) -> None:
    """Dry, then for good, then again: models and registered versions are named each time."""
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    model = artifacts["model"]
    tracker = Tracker(ctx.registry_uri, "gone", ctx.home / "mlruns")
    with tracker.run("release") as run:
        tags = {"model_digest": model.digest, "verdict": "pass"}
        tracker.register(ctx.recipe.release.model_name, model.url, run.id, tags, "")
    tracker.set_alias(ctx.recipe.release.model_name, "champion", 1)
    wanted = [
        f"{model.short}: trained on it",
        f"version 1 of {ctx.recipe.release.model_name} (champion) is {model.short}",
        "held 1 in training, 0 held out, 1 dropped",
        "1 picture of the same duplicate clusters",
    ]

    dry = forget(recipe, "--url", made.GONE, "--dry-run")
    rows = "2 of collection, 2 of dataset, 1 of judge, 1 of latents, 2 of scores"
    assert f"1 rule, 1 picture; rows would be taken out: {rows}\n" in dry
    assert pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).num_rows == 3
    done = forget(recipe, "--url", made.GONE)
    again = forget(recipe, "--url", made.GONE)
    for output in (dry, done, again):
        for words in wanted if output is not again else wanted[:3]:  # its cluster is no longer known
            assert words in output, words
    assert "2 of scores, all of them before\n" in again
    assert pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).num_rows == 2
    reports = sorted((ctx.home / "takedowns").glob("*.json"))
    assert len(reports) == 2
    first, second = (json.loads(report.read_text()) for report in reports)
    assert first["versions"] == second["versions"] == [
        {"name": ctx.recipe.release.model_name, "version": 1, "aliases": ["champion"], "model": model.short}
    ]  # fmt: skip
    model.verify()


def test_many_rules_at_once(recipe: str, tmp_path: Path) -> None:
    ctx = made.context(tmp_path)
    artifacts = made.full(ctx)
    (tmp_path / "list.csv").write_text(f"url,sha256\n{made.HELD},\n,{made.sha(0)}\n")
    words = ("--url", made.GONE, "--host", "other.test", "--list", str(tmp_path / "list.csv"))
    assert "4 rules, 4 pictures" in forget(recipe, *words)
    urls = pq.read_table(artifacts["first"].path("ledger.parquet"))["url"].to_pylist()
    assert [row for row, url in enumerate(urls) if url is None] == [0, 3, 4, 5]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Nothing to forget was named.*--url"),
        (("--url", " "), "no URL"),
        (("--sha256", "12"), "no SHA-256"),
        (("--host", "https://a.test/"), "no host name.*--url"),
        (("--list", "nowhere.txt"), "nowhere.txt does not exist"),
        (("--list", "rules.pdf"), "format that is not known"),
    ],
)
def test_bad_input(recipe: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(AtelierError, match=message) as error:
        forget(recipe, *words)
    assert error.value.exit_code == 2


def test_an_empty_store(recipe: str, tmp_path: Path) -> None:
    output = forget(recipe, "--url", "https://a.test/x.png")
    assert "the store holds nothing of it, nor will it" in output
    assert not (tmp_path / "gone" / "mlflow.db").exists()  # looking for versions made no registry


def test_a_registry_that_is_down(recipe: str, tmp_path: Path) -> None:
    """One message, exit code 5, and yet all is removed."""
    artifacts = made.full(made.context(tmp_path))
    command = [sys.executable, "-m", "pipelines.cli", "forget", "--recipe", recipe, "--url", made.GONE]
    done = subprocess.run(
        [*command, "--set", "run.registry=http://127.0.0.1:9"], cwd=ROOT, capture_output=True, text=True, timeout=900,
        stdin=subprocess.DEVNULL, env=os.environ | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr and "cannot be reached" in done.stderr
    assert "trained on it" in done.stdout
    assert pq.read_table(artifacts["dataset"].path("data/part-00000.parquet")).num_rows == 2
