"""The real openai client against the API on a real server: pictures, links, streams, and the class of every error."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from serving.auth import make_key
from serving.images import ImageStore
from serving.quota import Meter
from tests.serving.live import live


@pytest.fixture
def served(service: Callable[..., Any], make_painter: Any) -> Iterator[Any]:
    """A server with links and quotas, and ``.openai(key)``, which makes a client that tries once."""
    parts = service(make_painter(seconds=0.01), max_queue=2, max_batch=1)
    parts.service = replace(
        parts.service,
        images=ImageStore.of(parts.service.limits.serve, parts.home),
        meter=Meter(parts.home / "quota", rate=1000, quota=1000),
    )
    with live(parts.service) as url:

        def make(key: str, retries: int = 0) -> openai.OpenAI:
            http = httpx.Client(trust_env=False)
            return openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http, max_retries=retries)  # type: ignore[arg-type]

        parts.openai, parts.client = make, make(parts.key)
        yield parts


def pixels(b64: str | None) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64 or ""))).convert("RGB"))


def test_pictures_of_one_prompt_and_of_several(served: Any) -> None:
    made = served.client.images.generate(
        model="atelier", prompt="a star", n=2, size="auto", response_format="b64_json", user="someone",
        extra_body={"seed": 7, "num_inference_steps": 2},
    )  # fmt: skip
    assert [(pixels(d.b64_json)[0, 0] == served.painter.colour("a star", 7 + i)).all() for i, d in enumerate(made.data)]
    assert made.size == "8x8" and made.output_format == "png" and made._request_id
    several = served.client.images.generate(prompt=["a star", "a heart"], extra_body={"num_inference_steps": 2})
    assert [data.prompt_index for data in several.data] == [0, 1]
    assert [model.id for model in served.client.models.list()] == ["atelier"]
    assert served.client.models.retrieve("atelier").sizes == ["8x8"]


def test_links(served: Any) -> None:
    made = served.client.images.generate(
        prompt="a star", response_format="url", output_format="jpeg", output_compression=90
    )
    picture = httpx.get(made.data[0].url, trust_env=False)
    assert made.data[0].b64_json is None and Image.open(io.BytesIO(picture.content)).format == "JPEG"


def test_a_stream(served: Any) -> None:
    asked = {"prompt": "a star", "stream": True, "partial_images": 2, "n": 1}
    seen = list(served.client.images.generate(**asked, extra_body={"seed": 3}))
    assert [event.type for event in seen] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in seen[:-1]] == [0, 1]
    assert isinstance(seen[0], openai.types.ImageGenPartialImageEvent)
    assert isinstance(seen[-1], openai.types.ImageGenCompletedEvent)
    assert (pixels(seen[-1].b64_json)[0, 0] == served.painter.colour("a star", 3)).all()
    with_progress = list(served.client.images.generate(**asked, extra_body={"progress": True}))
    kinds = {event.type for event in with_progress}
    assert "image_generation.progress" in kinds and with_progress[-1].b64_json, "an own type of event is tolerated"


def test_an_error_in_a_stream_is_raised(served: Any) -> None:
    with pytest.raises(openai.APIError) as failed:
        list(served.client.images.generate(prompt="poison", stream=True))
    assert failed.value.code == "internal_error" and "secret" not in failed.value.message


def test_every_error_has_its_class(served: Any) -> None:
    generate = served.client.images.generate
    with pytest.raises(openai.BadRequestError) as bad:
        generate(prompt="a star", n=99)
    assert (bad.value.code, bad.value.param, bad.value.type) == ("invalid_value", "n", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="8x8"):
        generate(prompt="a star", size="1024x1024")
    with pytest.raises(openai.NotFoundError) as unknown:
        generate(prompt="a star", model="dall-e-3")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        served.openai("atelier-wrong-key").images.generate(prompt="a star")
    reader = make_key(served.home / "keys.json", "reader", rights=())
    with pytest.raises(openai.PermissionDeniedError) as denied:
        served.openai(reader).images.generate(prompt="a star")
    assert denied.value.code == "insufficient_permissions" and denied.value.type == "permission_error"
    with pytest.raises(openai.InternalServerError) as broken:
        generate(prompt="poison")
    assert broken.value.code == "internal_error"


def test_too_much_is_a_rate_limit_error_that_says_when(served: Any, until: Callable[..., None]) -> None:
    poor = make_key(served.home / "keys.json", "poor", quota=2)
    with pytest.raises(openai.RateLimitError) as spent:
        served.openai(poor).images.generate(prompt="a star", n=3)
    assert spent.value.code == "insufficient_quota" and int(spent.value.response.headers["retry-after"]) > 0
    hasty = served.openai(make_key(served.home / "keys.json", "hasty", rate=1))
    hasty.images.generate(prompt="a star")
    with pytest.raises(openai.RateLimitError) as fast:
        hasty.images.generate(prompt="a star")
    assert fast.value.code == "rate_limit_exceeded"
    served.painter.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        for waiting in range(1, 4):
            pool.submit(served.client.images.generate, prompt="a star")
            until(lambda n=waiting: served.service.engine.busy + served.service.engine.waiting >= n)
        with pytest.raises(openai.RateLimitError) as full:
            served.openai(poor).images.generate(prompt="a star", n=2)
        served.painter.gate.set()
    assert full.value.code == "queue_full" and int(full.value.response.headers["retry-after"]) >= 1
    made = served.openai(poor).images.generate(prompt="a star", n=2)  # what was refused was not charged
    assert len(made.data) == 2


def test_the_client_tries_again_by_itself_when_the_queue_was_full(served: Any, until: Callable[..., None]) -> None:
    served.painter.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(served.client.images.generate, prompt="a star") for _ in range(3)]
        until(lambda: served.service.engine.busy + served.service.engine.waiting >= 3)
        patient = pool.submit(served.openai(served.key, retries=4).images.generate, prompt="a heart")
        until(lambda: 'status="429"' in served.service.metrics.text().decode())
        served.painter.gate.set()
        assert all(len(each.result(30).data) == 1 for each in [*first, patient])
