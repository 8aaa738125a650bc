"""What replicas tell each other, and the metrics of all of them on one page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Metrics, merged
from serving.replicas import Board, signs


def test_each_replica_sees_the_living_others(tmp_path: Path, until: Any) -> None:
    boards = {name: Board(tmp_path, name, every_s=0.02) for name in ("a", "b")}
    for name, board in boards.items():
        board.start(lambda name=name: ({"served": "1"}, f"metrics of {name}"))
    until(lambda: [sign.replica for sign in signs(tmp_path)] == ["a", "b"])
    assert boards["a"].others() == {"b": "metrics of b"}
    found = signs(tmp_path)[0]
    assert found.pid == os.getpid() and found.state == {"served": "1"}
    boards["b"].close()
    assert boards["a"].others() == {}
    old = json.loads((tmp_path / "a.json").read_text()) | {"replica": "c", "at": 1.0}
    (tmp_path / "c.json").write_text(json.dumps(old))  # killed long ago
    (tmp_path / "d.json").write_text('{"half')
    assert [sign.replica for sign in signs(tmp_path)] == ["a"]
    boards["a"].close()


def test_a_board_that_cannot_be_written_is_tried_again(tmp_path: Path, until: Any) -> None:
    folder = tmp_path / "board"
    board = Board(folder, "a", every_s=0.02)
    folder.rmdir()
    folder.write_text("in the way")
    board.start(lambda: ({}, ""))
    until(lambda: board._error)
    folder.unlink()
    until(lambda: [sign.replica for sign in signs(folder)] == ["a"])
    board.close()


def test_metrics_of_all_replicas_carry_their_names() -> None:
    one, two = Metrics(), Metrics()
    one.requests.labels("200").inc(3)
    two.requests.labels("200").inc(4)
    two.requests.labels("500").inc()
    one.seconds.observe(0.3)
    text = merged({"a": one.own(), "b": two.own()})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    found = {
        (sample.labels["replica"], sample.labels["status"]): sample.value
        for sample in families["atelier_requests"].samples
        if sample.name.endswith("_total")
    }
    assert found == {("a", "200"): 3.0, ("b", "200"): 4.0, ("b", "500"): 1.0}
    histogram = families["atelier_request_duration_seconds"]
    assert histogram.type == "histogram" and {s.labels["replica"] for s in histogram.samples} == {"a", "b"}
    assert text.count("# TYPE atelier_requests_total") == 1


def test_a_replica_alone_needs_no_name() -> None:
    metrics = Metrics("a", dict)
    metrics.waiting.set(2)
    assert b"atelier_queue_requests 2.0" in metrics.text()
    others = Metrics("a", lambda: {"b": metrics.own()})
    assert b'atelier_queue_requests{replica="b"} 2.0' in others.text()
