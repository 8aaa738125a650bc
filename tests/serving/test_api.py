"""The HTTP interface over a real engine: shapes, errors, headers, logbook."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.api import build_api
from serving.auth import make_key
from serving.door import PLACE, TURNED_AWAY
from serving.engine import Served
from serving.logbook import read_logbook
from serving.pages import PLAYGROUND
from serving.provenance import DIGITAL_SOURCE_TYPE, read_provenance

IMAGES = "/v1/images/generations"


class Api:
    """A service and a client that holds its key."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        # a server error must come as an answer, as it does from a real server
        self.client = TestClient(build_api(parts.service), raise_server_exceptions=False)
        self.client.headers["Authorization"] = f"Bearer {parts.key}"

    def ask(self, **fields: Any) -> Any:
        return self.client.post(IMAGES, json={"prompt": "a star", **fields})

    def rows(self) -> list[dict[str, Any]]:
        self.parts.service.logbook.flush()
        rows: list[dict[str, Any]] = read_logbook(self.parts.home / "logbook").to_pylist()
        return rows


@pytest.fixture
def api(service: Callable[..., Any]) -> Callable[..., Api]:
    return lambda *args, **more: Api(service(*args, **more))


def error(answer: Any, status: int, code: str) -> dict[str, Any]:
    """Check that ``answer`` is an error in OpenAI's shape and says nothing of the inside."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert set(body) == {"error"} and set(body["error"]) >= {"message", "type", "param", "code"}
    assert body["error"]["code"] == code and body["error"]["message"]
    assert "Traceback" not in answer.text and "secret detail" not in answer.text
    return dict(body["error"])


def test_pictures_with_their_seeds_and_their_origin(api: Callable[..., Api]) -> None:
    it = api()
    answer = it.ask(n=2, seed=5, user="me")
    body = answer.json()
    assert answer.status_code == 200 and body["model_version"] == "1" and body["size"] == "8x8"
    assert [d["seed"] for d in body["data"]] == [5, 6] and body["data"][0]["revised_prompt"] is None
    png = base64.b64decode(body["data"][1]["b64_json"])
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    assert np.array_equal(pixels[0, 0], it.parts.painter.colour("a star", 6))
    said = read_provenance(png)
    assert said["digitalSourceType"] == DIGITAL_SOURCE_TYPE and said["seed"] == "6"
    assert said["model_version"] == "1" and said["request_id"] == answer.headers["x-request-id"]
    rows = it.rows()
    assert [row["seed"] for row in rows] == [5, 6]
    assert rows[1]["image_sha256"] == hashlib.sha256(png).hexdigest() and len(rows[1]["image_stats"]) == 6
    assert rows[0]["status"] == 200 and rows[0]["error"] is None and rows[0]["key_id"] in it.parts.key
    assert it.parts.key not in str(rows)


def test_a_cut_prompt_is_said_and_random_seeds_can_be_repeated(api: Callable[..., Api]) -> None:
    it = api()
    first = it.ask(prompt="long " * 20).json()["data"][0]
    again = it.ask(prompt="long " * 20, seed=first["seed"]).json()["data"][0]
    image = [Image.open(io.BytesIO(base64.b64decode(d["b64_json"]))) for d in (first, again)]
    assert first["truncated"] and np.array_equal(image[0], image[1]) and not first["negative_truncated"]
    both = it.ask(prompt="short", negative_prompt="long " * 20).json()["data"][0]
    assert both["negative_truncated"] and not both["truncated"]
    assert [row["truncated"] for row in it.rows()] == [True, True, False]  # the logbook's is the prompt's


def test_keys(api: Callable[..., Api]) -> None:
    it = api()
    for headers in ({"Authorization": ""}, {"Authorization": "Basic eA=="}):
        assert error(it.client.post(IMAGES, json={"prompt": "x"}, headers=headers), 401, "missing_api_key")
    wrong = it.client.post(IMAGES, json={"prompt": "x"}, headers={"Authorization": "Bearer atelier-0-x"})
    assert error(wrong, 401, "invalid_api_key")["type"] == "authentication_error"
    assert wrong.headers["www-authenticate"] == "Bearer"
    error(it.client.get("/v1/models", headers={"Authorization": ""}), 401, "missing_api_key")
    assert [row["prompt"] for row in it.rows()] == [None] * 3  # what a stranger sends is not kept
    assert it.client.get("/healthz", headers={"Authorization": ""}).status_code == 200


def test_a_damaged_keys_file_is_a_500_without_its_path(api: Callable[..., Api]) -> None:
    it = api()
    (it.parts.home / "keys.json").write_text("{")
    assert str(it.parts.home) not in error(it.ask(), 500, "internal_error")["message"]
    assert error(it.client.get("/v1/models"), 500, "internal_error")


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        ({"content": b"{"}, 400, "invalid_json"),
        ({"content": b"\xff\xfe\x00"}, 400, "invalid_json"),
        ({"content": b'{"prompt": "' + b"x" * 200_000 + b'"}'}, 413, "body_too_large"),
        ({"content": (b"x" * 1000 for _ in range(200))}, 413, "body_too_large"),  # no length announced
        ({"content": b'{"prompt": "x"}', "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
        ({"json": {}}, 400, "missing_required_parameter"),
        ({"json": {"prompt": "x", "n": 99}}, 400, "invalid_value"),
        ({"json": {"prompt": "x", "size": "512x512"}}, 400, "invalid_value"),
        ({"json": {"prompt": "x", "model": "other"}}, 404, "model_not_found"),
    ],
)
def test_refusals_have_their_code_and_a_row(
    api: Callable[..., Api], send: dict[str, Any], status: int, code: str
) -> None:
    it = api()
    send = {**send, "headers": {"Content-Type": "application/json", **send.get("headers", {})}}
    error(it.client.post(IMAGES, **send), status, code)
    assert [(row["status"], row["error"]) for row in it.rows()] == [(status, code)]


def test_unknown_paths_and_methods(api: Callable[..., Api]) -> None:
    it = api()
    error(it.client.get("/v1/nothing"), 404, "not_found")
    assert error(it.client.get(IMAGES), 405, "method_not_allowed")["type"] == "invalid_request_error"
    assert it.client.get(IMAGES).headers["allow"] == "POST"
    error(it.client.get("/playground/../../../etc/passwd"), 404, "not_found")
    error(it.client.get("/playground/%2e%2e%2fapi.py"), 404, "not_found")


def test_before_the_first_release(api: Callable[..., Api]) -> None:
    it = api(model=False)
    answer = it.ask()
    error(answer, 503, "no_model")
    assert int(answer.headers["retry-after"]) > 0
    error(it.client.get("/readyz"), 503, "no_model")
    assert it.client.get("/healthz").json()["model_version"] is None
    assert it.client.get("/v1/models").json()["data"] == []
    it.parts.service.engine.swap(Served("4", it.parts.painter))
    assert it.ask().json()["model_version"] == "4" and it.client.get("/readyz").status_code == 200


def test_overload_is_429_while_busy_stays_ready(api: Callable[..., Api]) -> None:
    it = api(max_queue=1, max_batch=1)
    it.parts.painter.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(it.ask) for _ in range(6)]
        deadline = time.monotonic() + 120
        while sum(f.done() for f in waiting) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert it.client.get("/readyz").status_code == it.client.get("/healthz").status_code == 200
        it.parts.painter.gate.set()
        answers = [f.result(10) for f in waiting]
    assert sorted(a.status_code for a in answers) == [200] * 2 + [429] * 4
    full = next(a for a in answers if a.status_code == 429)
    assert error(full, 429, "queue_full")["type"] == "rate_limit_error" and int(full.headers["retry-after"]) >= 1
    assert float(full.headers[PLACE]) >= 0
    assert sorted(row["status"] for row in it.rows()) == [200] * 2 + [429] * 4
    told = {TURNED_AWAY: "3"}  # by the door before the replicas
    assert it.client.post(IMAGES, json={"prompt": "a star"}, headers=told).status_code == 200
    text = it.client.get("/metrics").text
    assert 'atelier_requests_total{status="429"} 7.0' in text and 'atelier_model_info{version="1"} 1.0' in text


def test_a_model_that_fails_and_one_that_is_too_slow(api: Callable[..., Api]) -> None:
    it = api(timeout_s=0.2)
    error(it.ask(prompt="poison"), 500, "internal_error")
    it.parts.painter.gate.clear()
    slow = it.ask()
    it.parts.painter.gate.set()
    error(slow, 503, "timeout")
    assert it.ask().status_code == 200
    assert [row["status"] for row in it.rows()] == [500, 503, 200]


def test_models_version_and_openapi(api: Callable[..., Api]) -> None:
    it = api()
    assert it.client.get("/v1/models").json()["data"][0]["id"] == "atelier"
    assert it.client.get("/v1/models/atelier").json()["size"] == "8x8"
    error(it.client.get("/v1/models/gpt"), 404, "model_not_found")
    assert it.client.get("/version").json() == {"model": "atelier", "model_version": "1", "digest": "d" * 64}
    model = it.client.get("/v1/models/atelier").json()
    assert (model["sizes"], model["samplers"]) == (["8x8"], ["dpm++", "euler", "unipc"])


def test_the_description_has_the_limits_of_the_recipe_and_a_page(api: Callable[..., Api]) -> None:
    it = api(max_images=3, max_steps=9, max_prompt_chars=77)
    document = it.client.get("/openapi.json", headers={"Authorization": ""}).json()
    fields = document["components"]["schemas"]["ImageRequest"]["properties"]
    assert next(kind for kind in fields["n"]["anyOf"] if kind["type"] == "integer")["maximum"] == 3
    assert fields["prompt"]["anyOf"][0]["maxLength"] == fields["prompt"]["anyOf"][1]["items"]["maxLength"] == 77
    assert document["paths"][IMAGES]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/v1/images/{name}"]["get"]
    assert "422" not in str(document["paths"]) and not any("playground" in path for path in document["paths"])
    page = it.client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|<style|style=|\son\w+=|https?://", page.text), "nothing that the policy forbids"
    for path in [*document["paths"], "num_inference_steps", "integer 1..9", "negative_prompt", "CompletedEvent"]:
        assert path in page.text
    anchors = set(re.findall(r'href="#([^"]+)"', page.text))
    assert anchors and anchors <= set(re.findall(r'id="([^"]+)"', page.text))
    assert it.client.get("/docs.css").headers["content-type"].startswith("text/css")


def test_the_logbook_keeps_whole_words_of_a_prompt_that_is_too_long(api: Callable[..., Api]) -> None:
    it = api(max_prompt_chars=30)
    error(it.ask(prompt="a star for somebody@example.org who asked"), 400, "invalid_value")
    assert it.rows()[0]["prompt"] == "a star for", "no half of an address, which nothing would redact"


def test_request_ids_are_given_and_cleaned(api: Callable[..., Api]) -> None:
    it = api()
    assert re.fullmatch(r"[0-9a-f]{32}", it.ask().headers["x-request-id"])
    it.client.post(IMAGES, json={"prompt": "x"}, headers={"X-Request-ID": "mine-1 <script>" + "y" * 200})
    assert it.rows()[-1]["request_id"] == ("mine-1script" + "y" * 200)[:64]


def test_the_playground_obeys_its_own_policy(api: Callable[..., Api]) -> None:
    it = api()
    page = it.client.get("/", headers={"Authorization": ""})
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html") and page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<style|style=|<script>|\son\w+=|https?://", page.text)
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert it.client.get(path).status_code == 200
    for file in sorted(PLAYGROUND.glob("*.js")):
        code = it.client.get(f"/playground/{file.name}")
        assert "javascript" in code.headers["content-type"] and "innerHTML" not in code.text
    known = it.client.get("/playground/settings").json()
    assert known["image_size"] == 8 and known["key_required"] and known["sizes"] == ["8x8"] and known["samplers"]
    error(it.client.get("/playground/models", headers={"Authorization": ""}), 401, "missing_api_key")
    assert it.client.get("/playground/models").json() == {"models": [], "compare": False}
    assert api(model=False).client.get("/playground/settings").json()["sizes"] == []


def test_every_format_says_its_origin(api: Callable[..., Api]) -> None:
    it = api()
    for kind in ("png", "jpeg", "webp"):
        more = {} if kind == "png" else {"output_compression": 100}
        answer = it.ask(output_format=kind, seed=5, style="natural", **more)
        file = base64.b64decode(answer.json()["data"][0]["b64_json"])
        assert Image.open(io.BytesIO(file)).format == kind.upper() and answer.json()["output_format"] == kind
        said = read_provenance(file)
        assert (said["seed"], said["request_id"]) == ("5", answer.headers["x-request-id"])
        assert it.rows()[-1]["image_sha256"] == hashlib.sha256(file).hexdigest()


def test_lists_of_prompts_sizes_and_samplers(api: Callable[..., Api]) -> None:
    it = api(sizes=("16x8", "9x9"))
    answer = it.ask(prompt=["a star", "a heart"], n=2, seed=1, size="16x8", sampler="euler")
    body = answer.json()
    assert body["size"] == "16x8" and [d["prompt_index"] for d in body["data"]] == [0, 0, 1, 1]
    expected = [("a star", 1), ("a star", 2), ("a heart", 3), ("a heart", 4)]
    for data, (prompt, seed) in zip(body["data"], expected, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))
        assert pixels.shape == (8, 16, 3) and (pixels[0, 0] == it.parts.painter.colour(prompt, seed)).all()
    assert [row["prompt"] for row in it.rows()] == ["a star", "a star", "a heart", "a heart"]
    assert it.client.get("/v1/models").json()["data"][0]["sizes"] == ["8x8", "16x8"]


def test_templates_are_styles(api: Callable[..., Api]) -> None:
    words = {"prompt": "{prompt}, ink drawing", "negative": "colour", "palette": ["navy", "teal", "gold"]}
    it = api(templates={"ink": words})
    assert it.client.get("/v1/styles").json()["data"] == [
        {"id": "ink", "object": "style", "kind": "template", "caption": "{prompt}, ink drawing", "model_version": "",
         "available": True, "palette": ["navy", "teal", "gold"]}
    ]  # fmt: skip
    answer = it.ask(style="ink", seed=3)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))))
    told = "a star, ink drawing, in navy, teal and gold"
    assert (pixels[0, 0] == it.parts.painter.colour(told, 3)).all() and answer.json()["style"] == "ink"
    row = it.rows()[-1]
    assert (row["prompt"], row["style"]) == ("a star", "ink"), "the words of the user, not those of the style"
    error(it.ask(style="oil"), 400, "unknown_style")


def test_choosing_a_version_is_for_administrators(api: Callable[..., Api]) -> None:
    it = api()
    assert error(it.ask(version="champion"), 403, "insufficient_permissions")["type"] == "permission_error"
    boss = {"Authorization": f"Bearer {make_key(it.parts.home / 'keys.json', 'boss', rights=('generate', 'admin'))}"}
    assert it.client.post(IMAGES, json={"prompt": "x", "version": "1"}, headers=boss).status_code == 200
    wrong = it.client.post(IMAGES, json={"prompt": "x", "version": "7"}, headers=boss)
    assert error(wrong, 400, "unknown_version")["param"] == "version" and "Known: 1" in wrong.text
    assert it.client.get("/playground/models", headers=boss).json()["compare"] is True
    assert api(compare=True).ask(version="champion").status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(
    st.sampled_from(["prompt", "n", "size", "seed", "num_inference_steps", "guidance_scale", "user", "model", "x"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(max_size=3)),
))  # fmt: skip
def test_no_request_is_answered_with_a_server_error(api: Callable[..., Api], fields: dict[str, Any]) -> None:
    it = api()
    content = json.dumps(fields).encode()
    answer = it.client.post(IMAGES, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404), answer.text
