"""The commands for keys, users and the origin of pictures, as a person types them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from components.contracts.errors import InputError
from components.runtime.storage import Outcome, Store
from pipelines.cli import app
from serving.auth import KeyRing
from serving.logbook import Entry, Logbook
from serving.provenance import encode

run = CliRunner()


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that put the recipe's folder into the test's."""
    monkeypatch.setenv("COLUMNS", "300")
    return ["--set", f"run.root={tmp_path}"]


def told(*args: str) -> str:
    done = run.invoke(app, args)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_the_life_of_a_key(tmp_path: Path, at: list[str]) -> None:
    text = told("key", "make", "ada", "--rate", "60", "--no-log", *at).strip()
    path = next(tmp_path.rglob("keys.json"))
    key = KeyRing(path).verify(text)
    assert key and (key.name, key.rate, key.quota, key.log_prompts, key.rights) == (
        "ada",
        60,
        None,
        False,
        ("generate",),
    )
    listed = told("key", "list", *at)
    assert re.search(rf"{key.id}\s+ada\s+generate\s+60\s+100000\s+0\s+not logged", listed) and text not in listed
    told("key", "change", key.id, "--admin", "--quota", "0", "--log", *at)
    changed = KeyRing(path).verify(text)
    assert changed and changed.may("admin") and changed.quota == 0 and changed.log_prompts and changed.rate == 60
    assert "no limit" in told("key", "list", *at)
    assert "erase" in told("key", "revoke", key.id, *at)
    assert KeyRing(path).verify(text) is None


def test_what_is_no_key(at: list[str]) -> None:
    for args in (
        ["change", "0000"],
        ["change", "0000", "--rate", "5"],
        ["revoke", "0000"],
        ["make", "x", "--quota", "-1"],
    ):
        done = run.invoke(app, ["key", *args, *at])
        assert isinstance(done.exception, InputError), args


def test_erasing_and_verifying(tmp_path: Path, at: list[str]) -> None:
    told("key", "make", "ada", *at)
    home = next(tmp_path.rglob("keys.json")).parent
    book = Logbook(home / "logbook", "w", flush_s=60)
    book.append(Entry("r1", 200, 0.1, "k1", "a star", user="eve"), Entry("r2", 200, 0.1, "k1", "a moon"))
    book.close()
    draft = Store(str(home / "store")).draft("drift", {}, {})
    table = pa.table({"request_id": ["r1", "r2"], "prompt": ["a star", "a moon"]})
    pq.write_table(table, draft.dir / "prompts.parquet")
    draft.commit(Outcome())
    said = told("erase", "--user", "eve", *at)
    assert said.startswith("1 rows erased from 1 files") and "1 prompts taken out" in said
    kept = Store(str(home / "store")).list("drift")[0]
    assert pq.read_table(kept.path("prompts.parquet"))["prompt"].to_pylist() == [None, "a moon"]
    assert told("erase", "--key", "k1", *at).startswith("1 rows erased")
    assert isinstance(run.invoke(app, ["erase", *at]).exception, InputError)

    picture = tmp_path / "picture.png"
    pixels = np.zeros((40, 40, 3), np.uint8)
    picture.write_bytes(encode(pixels, "png", 90, model="m", version="3", seed=1, request_id="r9"))
    said = told("verify", str(picture), *at)
    assert "request_id r9" in said and "made by a trained model" in said and "not shown to be drawn here" in said
    picture.write_bytes(b"nothing")
    for file in (picture, tmp_path, tmp_path / "missing.png"):
        assert isinstance(run.invoke(app, ["verify", str(file), *at]).exception, InputError)
