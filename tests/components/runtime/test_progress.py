"""Progress in plain lines."""

from __future__ import annotations

import pytest

from components.runtime import progress
from components.runtime.progress import Progress


def test_the_time_left_is_reckoned_from_the_pace_of_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Progress("train", 1000, "img", initial=200, every_s=10.0)
    for seconds, done in ((9.0, 200), (1.0, 200), (10.0, 300), (5.0, 350), (5.0, 500)):
        now[0] += seconds
        bar.update(done)
    now[0] += 10.0
    bar.update(1000, "loss 1")
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "  train: 200/1000 img, 0.0 img/s",
        "  train: 300/1000 img, 10.0 img/s, 70 s left",  # the ten seconds of starting do not count
        "  train: 500/1000 img, 20.0 img/s, 25 s left",
        "  train: 1000/1000 img, 50.0 img/s, loss 1",
        "  train: 1000/1000 img, 20.0 img/s",  # 800 in 40 s
    ]


def test_going_back_to_a_checkpoint_is_no_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = Progress("train", 1000, "img", initial=500, every_s=10.0)
    for done in (500, 400, 450):
        now[0] += 10.0
        bar.update(done)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "  train: 500/1000 img, 0.0 img/s",
        "  train: 400/1000 img, 0.0 img/s",
        "  train: 450/1000 img, 5.0 img/s, 110 s left",
        "  train: 450/1000 img, 1.7 img/s, 330 s left",  # 50 in 30 s
    ]
