"""What the policy withholds: prompts before they are drawn, pictures after; and what is said about it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from components.contracts.recipe import Recipe
from serving.api import build_api
from serving.logbook import read_logbook
from serving.moderation import ALLOWED, Moderator, Verdict
from serving.watermark import Watermark
from tests.serving.live import IMAGES, client, events, live


class RedIsForbidden(Moderator):
    """The moderator, with a check of pictures that one can compute by hand: no red above 100."""

    def check_images(self, pixels: NDArray[np.uint8]) -> list[Verdict]:
        blocked = Verdict("block", {"concept/red": 0.9}, (), "picture", "The picture shows red.")
        return [blocked if picture[0, 0, 0] > 100 else ALLOWED for picture in pixels]


@pytest.fixture
def moderated(service: Callable[..., Any]) -> Any:
    """A service with the real rules for prompts, of which one word is the recipe's own."""
    parts = service(blocked_words=("blorp",), templates={"bad": {"prompt": "{prompt} with blorp"}})
    recipe = Recipe.model_validate({"name": "x", "serve": {"blocked_words": ["blorp"]}})
    policy, words = recipe.serve.moderation, recipe.serve.blocked_words
    parts.service = replace(parts.service, moderator=RedIsForbidden(policy, words))
    parts.client = TestClient(build_api(parts.service), raise_server_exceptions=False)
    parts.client.headers["Authorization"] = f"Bearer {parts.key}"
    parts.ask = lambda **asked: parts.client.post(IMAGES, json={"prompt": "a star", **asked})
    return parts


def seeds(parts: Any, red: bool, count: int) -> list[int]:
    """Seeds from which the painter's star is red, or is not."""
    found = [seed for seed in range(200) if (parts.painter.colour("a star", seed)[0] > 100) == red]
    return found[:count]


def rows(parts: Any) -> list[dict[str, Any]]:
    parts.service.logbook.flush()
    found: list[dict[str, Any]] = read_logbook(parts.home / "logbook").to_pylist()
    return found


def test_a_prompt_is_refused_with_its_categories_and_the_users_own_words(moderated: Any) -> None:
    answer = moderated.ask(prompt="some BLORP, please")
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "content_policy_violation" and error["param"] == "prompt"
    assert list(error["categories"]) == ["blocked_word"] and error["matches"] == ["BLORP"]
    second = moderated.ask(prompt=["a star", "some blorp"]).json()["error"]
    assert second["message"].startswith("Prompt 2: ")
    assert moderated.painter.begun == [], "nothing of a refused request is drawn"
    first = rows(moderated)[0]
    assert (first["status"], first["prompt"], first["moderation_action"]) == (400, "some BLORP, please", "block")
    assert first["moderation_categories"] == ["blocked_word"]
    assert 'subject="prompt"' in moderated.service.metrics.text().decode()


def test_templates_are_checked_and_negative_prompts_may_name_what_is_unwanted(moderated: Any) -> None:
    assert moderated.ask(style="bad").json()["error"]["code"] == "content_policy_violation"
    clean = seeds(moderated, red=False, count=1)[0]
    assert moderated.ask(negative_prompt="gore, nudity, violence", seed=clean).status_code == 200


def test_a_withheld_picture_is_an_error_of_its_own_and_never_black(moderated: Any) -> None:
    start = next(s for s in seeds(moderated, True, 200) if s + 1 in seeds(moderated, False, 200))
    body = moderated.ask(seed=start, n=2).json()
    withheld, sent = body["data"]
    assert withheld["b64_json"] is withheld["url"] is None and withheld["seed"] == start
    assert withheld["error"]["code"] == "moderation_blocked" and "concept/red" in withheld["error"]["categories"]
    assert sent["error"] is None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sent["b64_json"]))))
    assert (pixels[0, 0] == moderated.painter.colour("a star", start + 1)).all()
    said = [(row["status"], row["error"], row["moderation_action"]) for row in rows(moderated)]
    assert said == [(400, "moderation_blocked", "block"), (200, None, None)]
    assert [bool(row["image_sha256"]) for row in rows(moderated)] == [False, True]
    assert 'category="concept/red",' in moderated.service.metrics.text().decode()


def test_when_all_are_withheld_the_answer_is_an_error(moderated: Any) -> None:
    answer = moderated.ask(seed=seeds(moderated, red=True, count=1)[0])
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "moderation_blocked"
    assert error["categories"] == {"concept/red": 0.9} and "red" in error["message"]
    assert [row["error"] for row in rows(moderated)] == ["moderation_blocked"], "one row, not two"
    assert 'atelier_requests_total{status="400"} 1.0' in moderated.service.metrics.text().decode()


def test_in_a_stream_previews_are_checked_too(moderated: Any) -> None:
    start = seeds(moderated, red=True, count=1)[0]
    asked = {"prompt": "a star", "seed": start, "stream": True, "partial_images": 3}
    with live(moderated.service) as url, client(url, moderated.key) as it:
        with it.stream("POST", IMAGES, json=asked) as answer:
            seen = list(events(answer))
        # the painter's previews are half as bright: those of a strong red are red as well
        strong = moderated.painter.colour("a star", start)[0] // 2 > 100
    assert [event["type"] for event in seen if event["type"].endswith("partial_image")] == [] or not strong
    assert seen[-1]["type"] == "image_generation.refused" and seen[-1]["image_index"] == 0
    assert seen[-1]["error"]["code"] == "moderation_blocked" and "b64_json" not in seen[-1]


def test_a_watermark_is_in_what_is_sent(service: Callable[..., Any]) -> None:
    parts = service(sizes=("256x256",))
    mark = Watermark.of(parts.home)
    marked = replace(parts.service, watermark=mark)
    bearer = {"Authorization": f"Bearer {parts.key}"}
    asked = {"prompt": "a star", "size": "256x256", "seed": 1}
    answer = TestClient(build_api(marked)).post(IMAGES, json=asked, headers=bearer)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))
    assert mark.read(pixels) is not None
    plain = TestClient(build_api(parts.service)).post(IMAGES, json=asked, headers=bearer)
    unmarked = np.asarray(Image.open(io.BytesIO(base64.b64decode(plain.json()["data"][0]["b64_json"]))))
    assert mark.read(unmarked) is None and np.abs(pixels.astype(int) - unmarked.astype(int)).mean() < 4
