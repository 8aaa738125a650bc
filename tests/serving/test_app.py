"""The whole server on Ray Serve: a real registry, real (tiny) models, real clients over loopback."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from components.contracts.errors import InputError, RuntimeUnavailable
from components.contracts.recipe import Recipe
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from serving.logbook import read_logbook
from serving.provenance import read_provenance

pytestmark = pytest.mark.integration
STEPS = 2


def recipe(root: Path, **run: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "test", "serve": {"max_queue": 8, "max_batch": 8}, "run": {"root": str(root), "port": 0, **run}}
    )


@dataclass
class Running:
    ctx: Context
    server: Any
    key: str
    gate: Any

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=60, trust_env=False, **options)

    def release(self, artifact: Artifact) -> int:
        return int(self.gate.release(artifact).version)


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: Callable[[int], Artifact], gate: Any
) -> Iterator[Running]:
    """A server that was started before there was any champion, and then got version 1."""
    import ray

    from serving import app

    with Context.of(recipe(tmp_path_factory.mktemp("runs"))) as ctx:
        server = app.start(ctx)
        try:
            assert server.key is not None  # the first start makes the first key
            with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
                refused = client.post(
                    "/v1/images/generations", json={"prompt": "x"}, headers={"Authorization": f"Bearer {server.key}"}
                )
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "no_model"
                assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
            it = Running(ctx, server, server.key, gate(ctx.registry_uri, ctx.home, "test", ctx.recipe.release))
            server.wait_for(it.release(tiny_models(1)))
            yield it
        finally:
            server.stop()
        assert ray.is_initialized()  # the Ray of the context is not ours to stop
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/healthz", trust_env=False)


def test_the_openai_client_gets_a_picture(running: Running) -> None:
    from openai import AuthenticationError, BadRequestError, OpenAI

    def openai(key: str) -> OpenAI:
        return OpenAI(base_url=f"{running.server.url}/v1", api_key=key, http_client=httpx.Client(trust_env=False))

    client = openai(running.key)
    made = client.images.generate(
        model="atelier", prompt="a red star", size="auto", n=2, response_format="b64_json",
        extra_body={"seed": 7, "num_inference_steps": STEPS},
    )  # fmt: skip
    assert made.data is not None and len(made.data) == 2
    png = base64.b64decode(made.data[1].b64_json or "")
    image = Image.open(io.BytesIO(png))
    assert image.size == (16, 16) and image.mode == "RGB"
    assert read_provenance(png)["request_id"] == made._request_id  # the client's own reading of the header
    again = client.images.generate(prompt="a red star", extra_body={"seed": 8, "num_inference_steps": STEPS})
    assert again.data is not None
    assert pixels(again.data[0].b64_json) == pytest.approx(pixels(made.data[1].b64_json), abs=6)  # bf16 rounding
    assert [model.id for model in client.models.list()] == ["atelier"]
    with pytest.raises(AuthenticationError):
        openai("atelier-wrong-key").images.generate(prompt="x")
    with pytest.raises(BadRequestError, match="16x16"):
        client.images.generate(prompt="x", size="1024x1024")


def pixels(b64: str | None) -> list[int]:
    return list(Image.open(io.BytesIO(base64.b64decode(b64 or ""))).tobytes())


def test_answers_have_one_request_id_and_no_inside(running: Running) -> None:
    with running.client() as client:
        for answer in (
            client.get("/healthz"),
            client.get("/nothing"),
            client.post("/v1/images/generations", content=b"\xff", headers={"Content-Type": "application/json"}),
        ):
            assert "," not in answer.headers["x-request-id"] and "Traceback" not in answer.text
        huge = client.post(
            "/v1/images/generations", content=b"x" * 3_000_000, headers={"Content-Type": "application/json"}
        )
        assert huge.status_code == 413 and huge.json()["error"]["code"] == "body_too_large"
        assert client.get("/").status_code == 200 and client.get("/metrics").status_code == 200


def test_a_client_that_leaves_harms_nobody(running: Running, until: Callable[..., None]) -> None:
    ask: dict[str, Any] = {"prompt": "x", "num_inference_steps": 50, "n": 8}
    with running.client() as client:
        for _ in range(3):
            with pytest.raises(httpx.TimeoutException):
                client.post("/v1/images/generations", json=ask, timeout=0.05)
        answer = client.post("/v1/images/generations", json={"prompt": "y", "num_inference_steps": STEPS})
        assert answer.status_code == 200
    logbook = running.ctx.home / "logbook"
    until(lambda: read_logbook(logbook).column("status").to_pylist().count(499) == 3)  # and they were noticed


def test_a_stream_and_a_cancelled_request_through_serve(running: Running, until: Callable[..., None]) -> None:
    from tests.serving.live import events

    ask: dict[str, Any] = {"prompt": "x", "num_inference_steps": 50, "stream": True, "partial_images": 2}
    with running.client() as client:
        with client.stream("POST", "/v1/images/generations", json={**ask, "progress": True, "seed": 3}) as answer:
            seen = list(events(answer))
        kinds = [event["type"].partition(".")[2] for event in seen]
        assert kinds[0] == "progress" and kinds.count("partial_image") == 2 and kinds[-1] == "completed"
        named = {"X-Request-ID": "to-be-cancelled"}
        with client.stream(
            "POST", "/v1/images/generations", json={**ask, "n": 8, "progress": True}, headers=named
        ) as answer:
            coming = events(answer)
            next(coming)
            with running.client() as other:
                assert other.delete("/v1/requests/to-be-cancelled").status_code == 200
            *_, last = coming
        assert last["type"] == "error" and last["error"]["code"] == "cancelled"
        link = client.post("/v1/images/generations", json={"prompt": "x", "response_format": "url"}).json()
        assert httpx.get(link["data"][0]["url"], trust_env=False).headers["content-type"] == "image/png"
    assert list((running.ctx.home / "requests").iterdir()) == []
    logbook = running.ctx.home / "logbook"
    until(lambda: "cancelled" in read_logbook(logbook).column("error").to_pylist())


def test_the_champion_changes_under_load_without_a_failed_request(
    running: Running, tiny_models: Callable[[int], Artifact]
) -> None:
    from serving.client import ask

    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(
            ask, running.server.url, running.key, [f"prompt {i}" for i in range(20)], 6,
            until=stop, num_inference_steps=STEPS,
        )  # fmt: skip
        try:
            version = running.release(tiny_models(2))
            running.server.wait_for(version)
            with running.client() as client:
                assert client.get("/version").json()["digest"] == tiny_models(2).digest
                assert client.get("/readyz").json()["model_version"] == str(version)
        finally:
            threading.Timer(1.0, stop.set).start()  # some more of the new model
            report = load.result(60)
    assert report.failed == 0, report.errors
    assert report.ok > 20 and set(report.versions) == {"1", str(version)}


def test_a_damaged_champion_and_a_lost_registry_leave_the_old_one_serving(
    running: Running, tiny_models: Callable[[int], Artifact], until: Callable[..., None]
) -> None:
    before = running.server.status()["served"]
    artifact = tiny_models(9)  # of its own: other tests want theirs whole
    weights = next(p for p in Path(artifact.url).rglob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = running.release(artifact)
    until(lambda: running.server.status()["refused"] == str(refused))
    assert "damaged" in running.server.status()["refused_why"]
    file = Path(running.ctx.registry_uri.removeprefix("sqlite:///"))
    file.rename(file.with_suffix(".away"))
    with running.client() as client:
        until(lambda: client.get("/healthz").json()["registry"] == "unreachable")
        health = client.get("/healthz")
        assert health.status_code == 200 and health.json()["status"] == "degraded"
        answer = client.post("/v1/images/generations", json={"prompt": "still here", "num_inference_steps": STEPS})
        assert answer.status_code == 200 and answer.json()["model_version"] == before
        file.with_suffix(".away").rename(file)
        running.gate.promote(int(before))
        until(lambda: client.get("/healthz").json()["status"] == "ok")


def test_overload_gets_429_and_everything_is_in_the_logbook(running: Running) -> None:
    def one(i: int) -> httpx.Response:
        with running.client() as client:
            return client.post(
                "/v1/images/generations", json={"prompt": f"crowd {i}", "num_inference_steps": 50, "n": 8}
            )

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(one, range(40)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)
    running.server.flush_logbook()
    rows = [
        r for r in read_logbook(running.ctx.home / "logbook").to_pylist() if (r["prompt"] or "").startswith("crowd")
    ]
    requests = {row["request_id"]: row["status"] for row in rows}
    assert sorted(requests.values()) == sorted(statuses)
    served = [row for row in rows if row["status"] == 200]
    assert len(served) == 8 * statuses.count(200) and all(row["image_sha256"] for row in served)


@pytest.mark.slow
def test_blocking_says_where_it_is_and_stops_cleanly_on_sigterm(tmp_path: Path, until: Callable[..., None]) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(recipe(tmp_path).model_dump(mode="json")))  # JSON is YAML
    root = Path(__file__).resolve().parents[2]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "pipelines/deploy.py", "--recipe", str(path)], cwd=root, stderr=file, stdout=file,
            env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
    try:
        until(lambda: "API key" in log.read_text() or process.poll() is not None, 120)
        url = log.read_text().split("serve: ")[1].split()[0]
        assert httpx.get(f"{url}/healthz", trust_env=False).json()["status"] == "ok"
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert "serve: stopping" in said and "Traceback" not in said and "INFO" not in said, said
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz", trust_env=False)


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    from serving import app

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(RuntimeUnavailable, match=r"run\.port"):
            app.start(Context.of(recipe(tmp_path, port=other.getsockname()[1])))
    with pytest.raises(RuntimeUnavailable, match="address of this machine"):
        app.start(Context.of(recipe(tmp_path, host="203.0.113.7")))


def test_no_keys_only_on_loopback_and_a_damaged_keys_file(tmp_path: Path) -> None:
    from serving import app

    with pytest.raises(InputError, match="without API keys"):
        app.start(Context.of(recipe(tmp_path, host="0.0.0.0")), require_key=False)
    ctx = Context.of(recipe(tmp_path))
    ctx.home.mkdir(parents=True)
    (ctx.home / "keys.json").write_text(json.dumps({"keys": 1}))
    with pytest.raises(InputError, match="keys file"):
        app.start(ctx)


def test_the_builder_for_deployments_checks_its_arguments() -> None:
    from serving import app

    assert app.build({"recipe": "demo", "set": ["run.port=0"]})
    with pytest.raises(InputError, match="recipe"):
        app.build({"recipes": "demo"})


def test_replicas_and_autoscaling_of_a_recipe(tmp_path: Path) -> None:
    from serving import app

    def deployed(**run: Any) -> Any:
        bound = app.application(recipe(tmp_path, **run), str(tmp_path), "sqlite:///none.db")
        return bound._bound_deployment._deployment_config

    fixed = deployed(replicas=3)
    assert fixed.num_replicas == 3 and fixed.autoscaling_config is None and fixed.max_surge_percent == 100
    scaled = deployed(replicas=2, max_replicas=5).autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (2, 5, 8)  # a whole batch
    assert deployed(gpus_per_worker=1).max_surge_percent == 0  # there may be no room for one more
    with pytest.raises(ValueError, match=r"max_replicas 1 is less than run.replicas 2"):
        recipe(tmp_path, replicas=2, max_replicas=1)
