"""A training watched from outside: what is new is passed on once, and MLflow has it while it runs."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.contracts.errors import RegistryError
from components.runtime.tracking import Tracker
from components.training import following as module
from components.training.following import RunListener, following, note_of, read_curve
from components.training.sheets import sheet_of, write_sheet


@dataclass
class _Plan:
    steps: int = 10
    batch_size: int = 8


@dataclass
class _Heard:
    seen: list[int] = field(default_factory=list)
    sheets: list[str] = field(default_factory=list)
    some: threading.Event = field(default_factory=threading.Event)

    def points(self, points: list[dict[str, Any]]) -> None:
        self.seen += [int(p["images"]) for p in points]
        self.some.set()

    def sheet(self, path: Path) -> None:
        self.sheets.append(path.name)


def _point(images: int, **more: float) -> dict[str, Any]:
    pace = {"images_per_second": 145.2, "waiting_share": 0.031, "mfu": 0.342, "cost": 1.25, "cost_expected": 12.5}
    return {"images": images, "seconds": 1.0, "loss": 1.2345, "gradient_norm": 0.5, **more, "pace": pace}


def _write(folder: Path, points: list[dict[str, Any]], half: str = "") -> None:
    (folder / "curve.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points) + half)


def test_points_and_sheets_are_passed_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.02)
    monkeypatch.setattr(module, "_LOG_S", 0.0)
    heard = _Heard()
    with following("tiny", _Plan(), tmp_path, heard):
        _write(tmp_path, [_point(8), _point(16)], half='{"images": 24, "lo')
        assert heard.some.wait(10)  # while the training runs
        _write(tmp_path, [_point(8)])  # workers start again from an earlier checkpoint
        write_sheet(tmp_path, 16, np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"])
        _write(tmp_path, [_point(8), _point(16), _point(24)])
    assert heard.seen == [8, 16, 24] and heard.sheets == ["images-000000016.png"]


def test_mlflow_has_the_curve_and_the_sheets(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "runs", tmp_path / "files")
    folder = tmp_path / "state"
    folder.mkdir()
    path = write_sheet(folder, 16, np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"])
    with tracker.run("train", tags={"artifact": "x"}) as run:
        listener = RunListener(run)
        listener.points([_point(8), _point(16, validation_loss=0.9)])
        listener.sheet(path)
        assert run.last_step("loss") == 16  # it is there before the run ends
    with tracker.run("train", resume=run.id) as again:
        resumed = RunListener(again)
        resumed.points([_point(8), _point(16), _point(24)])
        resumed.finish()
    history = tracker._client.get_metric_history(run.id, "loss")
    assert [m.step for m in history] == [8, 16, 24]
    found = tracker._client.get_run(run.id)
    wanted = {
        "loss",
        "gradient_norm",
        "validation_loss",
        "images_per_second",
        "waiting_share",
        "mfu",
        "cost",
        "seconds",
    }
    assert wanted <= found.data.metrics.keys() and found.info.status == "FINISHED"
    names = [f.path for f in tracker._client.list_artifacts(run.id, "sheets")]
    assert sorted(names) == ["sheets/images-000000016.png", "sheets/prompts.txt"]


class _Away:
    """A run whose server is away for a while."""

    def __init__(self) -> None:
        self.away, self.logged = True, list[int]()

    def last_step(self, metric: str) -> int:
        return -1

    def log_points(self, points: list[tuple[int, dict[str, float]]]) -> None:
        if self.away:
            raise RegistryError("The MLflow registry at http://x cannot be reached")
        self.logged += [step for step, _ in points]


def test_a_server_that_is_away_stops_nothing_and_gets_all_later(capsys: pytest.CaptureFixture[str]) -> None:
    run = _Away()
    listener = RunListener(run)  # type: ignore[arg-type]
    listener.points([_point(8)])
    listener.points([_point(16)])
    assert capsys.readouterr().err.count("cannot be reached; the training goes on") == 1
    with pytest.raises(RegistryError):
        listener.finish()
    run.away = False
    listener.points([_point(24)])
    assert run.logged == [8, 16, 24]


def test_the_note_is_short() -> None:
    points = [_point(8, validation_loss=0.91, validation_loss_average=0.87), _point(16)]
    assert note_of(points) == "loss 1.234 val 0.870 mfu 34% wait 3% cost 1.25/12.50"
    assert note_of([]) == "starting workers"


def test_a_missing_curve_is_empty(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "curve.jsonl") == []


def test_a_sheet_holds_every_picture_in_reading_order() -> None:
    pictures = np.stack([np.full((64, 64, 3), 10 * i, np.uint8) for i in range(11)])
    sheet = sheet_of(pictures)
    assert sheet.shape == (2 * 132 + 4, 8 * 132 + 4, 3)
    assert [int(sheet[4 + 64, 4 + 132 * i + 64, 0]) for i in range(8)] == [10 * i for i in range(8)]
    assert int(sheet[132 + 4 + 64, 4 + 132 * 2 + 64, 0]) == 100
