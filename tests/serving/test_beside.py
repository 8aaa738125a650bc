"""What is drawn and scored besides, with the real engine and logbook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.beside import Beside, Piece
from serving.engine import Engine, Served
from serving.logbook import Logbook, read_logbook
from serving.metrics import Metrics
from serving.schemas import Lora, Order

ORDER = Order("a red star", None, (5, 6), steps=2, guidance_scale=1.0)


class Brightness:
    """A judge that likes bright pictures."""

    judge = "j" * 64

    def score(self, prompt: str, pixels: NDArray[np.uint8]) -> float:
        assert prompt and pixels.shape[1:] == (8, 8, 3)
        return float(pixels.mean() / 255)


@pytest.fixture
def make(tmp_path: Path, make_painter: Any) -> Iterator[Callable[..., Any]]:
    """An engine that serves version 1, and what is beside it: ``.beside``, ``.piece()``, ``.rows()``, ``.shadow``."""
    made = []

    def build(**options: Any) -> Any:
        metrics = Metrics()
        engine = Engine(max_batch=4, max_queue=8, metrics=metrics, warm_up_s=0.0)
        engine.swap(Served("1", make_painter("1"), "1" * 8))
        logbook = Logbook(tmp_path / "logbook", "w", flush_s=0.05)
        beside = Beside(engine, metrics, logbook, **options)
        made.append((beside, engine, logbook))

        def piece(order: Order = ORDER, request_id: str = "r1") -> Piece:
            return Piece(request_id, ((order, engine.submit(order).future.result(20)),), 0.5)

        def rows() -> list[dict[str, Any]]:
            logbook.flush()
            return list(read_logbook(tmp_path / "logbook").to_pylist())

        shadow = Served("2", make_painter("2"), "2" * 8)
        return SimpleNamespace(
            beside=beside, engine=engine, metrics=metrics, piece=piece, rows=rows, shadow=shadow, painter=make_painter
        )

    yield build
    for beside, engine, logbook in made:
        beside.close()
        engine.close(2)
        logbook.close()


def test_the_shadow_draws_the_same_request_and_is_compared(make: Any, until: Any) -> None:
    it = make(shadow_share=1.0)
    piece = it.piece()
    it.beside.offer(piece, it.shadow)
    until(lambda: it.rows())
    (row,) = it.rows()
    assert (row["role"], row["model_version"], row["status"], row["request_id"]) == ("shadow", "2", 200, "r1")
    assert row["prompt"] is None and row["key_id"] is None and row["seed"] == 5 and len(row["image_stats"]) == 6
    theirs = np.stack([it.painter("2").colour("a red star", seed) for seed in (5, 6)]).astype(int)
    ours = np.stack([it.painter("1").colour("a red star", seed) for seed in (5, 6)]).astype(int)
    found = it.beside.compared("2")
    assert found["requests"] == 1 and found["failed"] == 0 and found["champion_seconds"] == 0.5
    assert found["difference"] == pytest.approx(np.abs(theirs - ours).mean() / 255) and found["quality"] is None
    assert b'atelier_shadow_requests_total{outcome="drawn"} 1.0' in it.metrics.text()


def test_a_shadow_that_fails_harms_nobody_and_is_counted(make: Any, until: Any) -> None:
    it = make(shadow_share=1.0)
    piece = it.piece()
    broken = replace(it.shadow, generator=it.painter("2"))
    broken.generator.begin = lambda pictures: 1 / 0
    it.beside.offer(piece, broken)
    until(lambda: it.beside.compared("2"))
    until(lambda: it.rows())
    assert it.beside.compared("2")["failed"] == 1 and it.rows()[0]["error"] == "shadow_failed"
    assert it.engine.submit(ORDER).future.result(20).served.version == "1"


def test_what_another_version_cannot_draw_is_left_out(make: Any, tmp_path: Path, until: Any) -> None:
    it = make(shadow_share=1.0)
    piece = it.piece()
    for order in (replace(ORDER, style=Lora("s", "d", tmp_path)), replace(ORDER, width=11, height=13)):
        it.beside.offer(Piece("r", ((order, piece.drawings[0][1]),), 0.1), it.shadow)
    until(lambda: b'atelier_shadow_requests_total{outcome="left out"} 2.0' in it.metrics.text())
    assert not it.rows() and it.beside.compared("2") is None


def test_only_a_share_is_drawn_and_nothing_without_a_share(make: Any, until: Any) -> None:
    it = make(shadow_share=0.0)
    it.beside.offer(it.piece(), it.shadow)
    assert not it.beside._pieces


def test_pictures_are_scored_and_the_shadows_with_them(make: Any, until: Any) -> None:
    asked = []

    def scorer(served: Served) -> Brightness:
        asked.append(served.version)
        return Brightness()

    it = make(shadow_share=1.0, quality_share=1.0, scorer=scorer)
    for i in range(3):
        it.beside.offer(it.piece(request_id=f"r{i}"), it.shadow)
    until(lambda: len(it.rows()) == 6)
    by_role = {role: [row for row in it.rows() if row["role"] == role] for role in ("quality", "shadow")}
    assert [row["model_version"] for row in by_role["quality"]] == ["1"] * 3 and asked == ["1"]
    assert {row["judge"] for row in it.rows()} == {"j" * 12}
    colours = {v: np.stack([it.painter(v).colour("a red star", s) for s in (5, 6)]).mean() / 255 for v in "12"}
    assert by_role["quality"][0]["quality"] == pytest.approx(colours["1"], abs=1e-3)
    assert by_role["shadow"][0]["quality"] == pytest.approx(colours["2"], abs=1e-3)
    found = it.beside.compared("2")
    assert found["quality"] == pytest.approx(colours["2"], abs=1e-3)
    assert found["champion_quality"] == pytest.approx(colours["1"], abs=1e-3)
    assert b'atelier_picture_quality_ratio_count{version="1"} 3.0' in it.metrics.text()


def test_a_flood_is_left_out_and_close_waits_for_nobody(make: Any) -> None:
    it = make(shadow_share=1.0)
    piece = it.piece()
    it.shadow.generator.gate.clear()
    for i in range(60):
        it.beside.offer(replace(piece, request_id=f"r{i}"), it.shadow)
    assert b'outcome="left out"' in it.metrics.text() and len(it.beside._pieces) <= 32
    it.shadow.generator.gate.set()
