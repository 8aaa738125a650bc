"""What the benchmarks reckon with: rows that are kept, meters of memory and processor time, recipes and reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from components.runtime.recipes import load_recipe, parse_recipe
from tests.benchmarks import ablations, ablations_report, harness, train, train_fidelity, train_worker


def _row(figure: str, ours: float, holds: bool | None = True) -> harness.Row:
    return harness.Row(figure, "s", ours, "rival", None, None, "<= 1 s", holds, None, 1, "note")


def test_rows_that_are_not_measured_again_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    order = ("quick", "long", "gpu")
    monkeypatch.setattr(harness, "today", lambda: "2026-01-01")
    gpu = harness.not_run("gpu", "%", ">= 50 %", "no GPU")
    harness.update("x", "X", [_row("long", 5.0), _row("quick", 1.0), gpu], (), order)
    monkeypatch.setattr(harness, "today", lambda: "2026-02-02")
    asked = [harness.not_run("long", "s", "<= 1 s", "not asked for"), _row("quick", 2.0, False), gpu]
    harness.update("x", "X", asked, (), order)
    rows = {row.figure: row for row in harness.earlier("x")}
    assert list(rows) == ["quick", "long", "gpu"]
    assert (rows["long"].ours, rows["long"].date) == (5.0, "2026-01-01")
    assert (rows["quick"].ours, rows["quick"].holds, rows["quick"].date) == (2.0, False, "2026-02-02")
    assert rows["gpu"].holds is None and json.loads((tmp_path / "x.json").read_text())["rows"][2]["ours"] is None
    text = (tmp_path / "x.md").read_text()
    assert "long: note (measured 2026-01-01)" in text and "| – | stated limit | – | – | >= 50 % | not run |" in text


def test_pairs_of_runs_give_ratio_and_range() -> None:
    row = harness.paired("f", "img/s", [3.0, 4.0, 5.0], "rival", [2.0, 2.0, 4.0], 1.5)
    assert (row.ours, row.rival, row.ratio, row.interval, row.runs) == (4.0, 2.0, 2.0, (1.25, 2.0), 3)
    assert row.holds and not harness.paired("f", "s", [3.0], "rival", [2.0], 1.0, "<=").holds


def test_the_state_of_adamw_is_eight_bytes_a_weight() -> None:
    before = train_worker.state_bytes()
    weight = torch.nn.Parameter(torch.ones(1000))
    optimiser = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimiser.step()
    assert train_worker.state_bytes() - before == 8000


def test_processor_time_of_named_descendants_is_counted() -> None:
    burn = "import sys, time\nend = time.process_time() + float(sys.argv[2])\nwhile time.process_time() < end: pass"
    meter = train_fidelity.Meter(os.getpid(), "counted")
    try:
        inner = [sys.executable, "-c", burn, "counted", "1.5"]
        outer = f"import subprocess; subprocess.run({inner!r}, check=True)"
        other = subprocess.Popen([sys.executable, "-c", burn, "other", "0.5"])
        subprocess.run([sys.executable, "-c", outer], check=True, timeout=60)
        assert other.wait(60) == 0
    finally:
        seconds = meter.stop()
    assert 0.5 <= seconds < 2.3  # the outer process, whose command names the inner one, takes little


def test_fidelity_holds_within_its_core_minutes_only() -> None:
    fidelity = {"value": 0.96, "low": 0.94, "high": 0.97, "n": 1024, "stamp": "0123456789abcdef"}
    metrics = {"known": {"fidelity": fidelity}, "stamp": {"steps": 16, "guidance_scale": 2.0, "sampler": "solver"}}
    row = train_fidelity.judged("fidelity32", metrics, {"processor": 540.0, "wall": 300.0}, 80_000, "fp32")
    assert row.holds and row.interval == (0.94, 0.97) and "9.0 core-minutes of 10" in row.note
    assert not train_fidelity.judged("fidelity32", metrics, {"processor": 660.0, "wall": 300.0}, 1, "fp32").holds
    assert train_fidelity.judged("fidelity64", metrics, {"processor": 660.0, "wall": 300.0}, 1, "fp32").rival is None


def test_the_recipes_of_the_figures_are_sound() -> None:
    for name in train_fidelity.ASKED:
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.assess.prompts >= 512
    for variant in ablations.VARIANTS.values():
        recipe = parse_recipe(ablations.tree_of(variant, 1, Path("root")), variant.label)
        assert recipe.assess.guidance_scale == 1 or recipe.train.denoiser.caption_dropout > 0


def test_the_report_pools_the_seeds(tmp_path: Path) -> None:
    curve = [{"images": 64 * i, "loss": 1 / i, "validation_loss": 2 / i} for i in range(1, 12)]
    runs = [
        {
            "variant": name, "seed": seed, "images": 704, "parameters": 1_000_000, "curve": curve,
            "metrics": {"fidelity": {"value": value, "n": 100, "stamp": "s"}, "frechet": {"value": 3.0}},
            "stamp": {"steps": 16},
        }
        for name, seed, value in (("base", 0, 0.9), ("base", 1, 0.8), ("v", 0, 0.5))
    ]  # fmt: skip
    ablations_report.write_report(runs, tmp_path)
    rows = json.loads((tmp_path / "ablations.json").read_text())["rows"]
    assert [row["fidelity"]["value"] for row in rows] == [0.85, 0.5] and rows[0]["fidelity"]["n"] == 200
    assert rows[0]["validation_loss_by_seed"] == pytest.approx([2 / 11, 2 / 11])
    assert "| base |" in (tmp_path / "ablations.md").read_text() and (tmp_path / "curves.png").stat().st_size > 5000
    ablations_report.write_report([], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert train.main(["sped"]) == 2 and "no part sped" in capsys.readouterr().err
    assert time.monotonic() - started < 5
