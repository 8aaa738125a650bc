"""Streams: OpenAI's events, previews, progress, errors on the way, and pictures that are withheld."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.logbook import read_logbook
from tests.serving.live import IMAGES, client, events, live


@pytest.fixture
def slow(service: Callable[..., Any], make_painter: Any) -> Any:
    """A service whose model takes 30 ms a step."""
    return service(make_painter(seconds=0.03))


@contextmanager
def streamed(parts: Any, **asked: Any) -> Any:
    """The events of one request, as they come."""
    with live(parts.service) as url, client(url, parts.key) as it:
        body = {"prompt": "a star", "stream": True, "num_inference_steps": 8, **asked}
        with it.stream("POST", IMAGES, json=body) as answer:
            yield answer


def pixels(event: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))).convert("RGB"))


def rows(parts: Any) -> list[dict[str, Any]]:
    parts.service.logbook.flush()
    found: list[dict[str, Any]] = read_logbook(parts.home / "logbook").to_pylist()
    return found


def test_previews_and_pictures_in_openais_shape(slow: Any) -> None:
    with streamed(slow, partial_images=2, n=2, seed=5) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream") and answer.headers["x-request-id"]
        seen = list(events(answer))
    kinds = [event["type"].partition(".")[2] for event in seen]
    assert kinds.count("partial_image") == 4 and kinds.count("completed") == 2 and kinds[-2:] == ["completed"] * 2
    for event in seen:  # what openai's types require of both kinds
        assert event["background"] == "opaque" and event["quality"] == "auto" and event["output_format"] == "png"
        assert event["size"] == "8x8" and isinstance(event["created_at"], int)
        assert event["request_id"] == answer.headers["x-request-id"]
    previews = [event for event in seen if event["type"].endswith("partial_image")]
    for index in (0, 1):
        mine = [event for event in previews if event["image_index"] == index]
        assert [event["partial_image_index"] for event in mine] == [0, 1] and mine[0]["step"] < mine[1]["step"] < 8
        done = seen[-2 + index]
        assert (done["image_index"], done["seed"], done["model_version"]) == (index, 5 + index, "1")
        assert (pixels(done)[0, 0] == slow.painter.colour("a star", 5 + index)).all()
        assert (pixels(mine[0])[0, 0] == slow.painter.colour("a star", 5 + index) // 2).all()
    assert [(row["status"], row["seed"]) for row in rows(slow)] == [(200, 5), (200, 6)]
    assert all(row["image_sha256"] for row in rows(slow))


def test_the_stream_holds_the_picture_of_the_plain_request(slow: Any) -> None:
    asked = {"seed": 9, "prompt": ["a star", "a heart"], "output_format": "webp", "output_compression": 100}
    with streamed(slow, **asked) as answer:
        seen = list(events(answer))
    with live(slow.service) as url, client(url, slow.key) as it:
        plain = it.post(IMAGES, json={"num_inference_steps": 8, **asked}).json()
    assert [event["type"] for event in seen] == ["image_generation.completed"] * 2, "OpenAI's events and no others"
    by_prompt = {event["prompt_index"]: event for event in seen}
    for data in plain["data"]:
        event = by_prompt[data["prompt_index"]]
        assert event["seed"] == data["seed"] == 9 + data["prompt_index"] == 9 + event["image_index"]
        assert (pixels(event) == pixels(data)).all() and event["output_format"] == "webp"


def test_progress_tells_place_steps_and_time(slow: Any, until: Callable[..., None]) -> None:
    slow.painter.gate.clear()
    engine = slow.service.engine
    with live(slow.service) as url, client(url, slow.key) as it, ThreadPoolExecutor(1) as pool:
        # more pictures than one batch holds are before it
        first = pool.submit(it.post, IMAGES, json={"prompt": ["x"] * 8, "num_inference_steps": 8})
        until(lambda: engine.busy + engine.waiting >= 8)
        body = {"prompt": "a star", "stream": True, "progress": True, "num_inference_steps": 20}
        with it.stream("POST", IMAGES, json=body) as answer:
            coming = events(answer)
            begin = next(coming)
            assert begin["type"] == "image_generation.progress" and begin["step"] == 0 and begin["steps"] == 20
            assert begin["state"] in ("queued", "drawing") and begin["ahead"] >= 0
            slow.painter.gate.set()
            seen = [begin, *coming]
        assert first.result(20).status_code == 200
    steps = [event["step"] for event in seen[:-1]]
    assert steps == sorted(steps) and len(set(steps)) > 1 and seen[-1]["type"] == "image_generation.completed"
    told = [event["seconds_left"] for event in seen[:-1] if event["state"] == "drawing"]
    assert told and all(left is None or 0 <= left < 60 for left in told)


def test_refused_before_the_first_event_is_a_plain_error(slow: Any) -> None:
    for asked, status, code in (
        ({"n": 99}, 400, "invalid_value"),
        ({"response_format": "url"}, 400, "invalid_value"),
        ({"model": "other"}, 404, "model_not_found"),
    ):
        with streamed(slow, **asked) as answer:
            answer.read()
        assert answer.status_code == status and answer.json()["error"]["code"] == code
        assert answer.headers["content-type"] == "application/json"


def test_a_failure_on_the_way_ends_the_stream_with_an_error(slow: Any) -> None:
    with streamed(slow, prompt=["a star", "poison"], progress=True) as answer:
        *_, last = events(answer)
    assert answer.status_code == 200 and last["type"] == "error"
    assert last["error"]["code"] == "internal_error" and "secret detail" not in str(last)
    assert [row["error"] for row in rows(slow)][-1] == "internal_error"
    assert 'atelier_requests_total{status="500"} 1.0' in slow.service.metrics.text().decode()


def test_too_slow_is_said_with_when_to_try_again(service: Callable[..., Any], painter: Any) -> None:
    parts = service(painter, timeout_s=0.3)
    painter.gate.clear()
    with streamed(parts) as answer:
        (last,) = events(answer)
    painter.gate.set()
    assert last["error"]["code"] == "timeout" and last["error"]["retry_after"] >= 1


def test_cancelling_ends_the_stream(slow: Any, until: Callable[..., None]) -> None:
    with live(slow.service) as url, client(url, slow.key) as it:
        body = {"prompt": "a star", "stream": True, "progress": True, "num_inference_steps": 50, "partial_images": 3}
        with it.stream("POST", IMAGES, json=body, headers={"X-Request-ID": "one"}) as answer:
            coming = events(answer)
            next(coming)
            assert it.delete("/v1/requests/one").json()["cancelled"]
            *_, last = coming
    assert last["error"]["code"] == "cancelled"
    until(lambda: slow.service.engine.busy == 0, 5)
    assert rows(slow)[-1]["status"] == 499


def test_an_idle_stream_says_that_it_lives(slow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.streaming._IDLE_S", 0.05)
    with streamed(slow) as answer:
        text = answer.read().decode()
    assert text.count(": still drawing\n\n") >= 2 and text.startswith(": accepted\n\n")
