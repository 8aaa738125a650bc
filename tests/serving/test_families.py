"""A GAN, a CNN and a diffusion release through the same API, one after the other, from a real registry."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from components.evaluation.signing import Keys
from components.models.families import load_generator
from components.runtime.storage import Artifact, Outcome, Store
from serving.api import build_api
from serving.follower import Follower
from tests.components.models.families import save_family

IMAGES = "/v1/images/generations"


def made(store: Store, folder: Path, family: str) -> Artifact:
    """A finished model artifact of this family."""
    save_family(folder / family, family)
    draft = store.draft("model", {}, {"family": family})
    shutil.copytree(folder / family / "model", draft.dir, dirs_exist_ok=True)
    return draft.commit(Outcome())


def pixels(answer: Any) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(d["b64_json"])))) for d in answer.json()["data"]]


@pytest.mark.integration
def test_releases_of_three_families_are_served_alike(
    tmp_path: Path, service: Callable[..., Any], tiny_models: Callable[[int], Artifact], gate: Any
) -> None:
    parts = service(model=False)
    store, uri = Store(str(tmp_path / "store")), f"sqlite:///{tmp_path / 'mlflow.db'}"
    follower = Follower(
        uri, "x", "atelier", load=load_generator, switch=parts.service.engine.swap, metrics=parts.service.metrics,
        keys=Keys(tmp_path),
    )  # fmt: skip
    client = TestClient(build_api(parts.service), raise_server_exceptions=False)
    client.headers["Authorization"] = f"Bearer {parts.key}"
    asked = {"prompt": "a red star", "n": 2, "seed": 4}
    models = {"gan": made(store, tmp_path, "gan"), "cnn": made(store, tmp_path, "cnn"), "diffusion": tiny_models(1)}
    for version, (family, model) in enumerate(models.items(), 1):
        gate(uri, tmp_path).release(model)
        follower.check()
        assert follower.state.served == str(version), follower.state
        listed = client.get("/v1/models").json()["data"][0]
        assert (listed["family"], listed["uses_steps"], listed["uses_seed"]) == (
            family, family == "diffusion", family != "cnn",
        )  # fmt: skip
        answer = client.post(IMAGES, json={**asked, "num_inference_steps": 3, "guidance_scale": 2.0})
        one, two = pixels(answer)
        assert answer.json()["model_version"] == str(version) and one.shape == (16, 16, 3)
        assert (one != two).any() == (family != "cnn"), "two seeds, two pictures, where there is chance"
        unused = {"gan": ["num_inference_steps", "guidance_scale"], "diffusion": []}
        unused["cnn"] = [*unused["gan"], "seed"]
        assert answer.json()["ignored"] == unused[family]
        again = pixels(client.post(IMAGES, json={**asked, "num_inference_steps": 3, "guidance_scale": 2.0}))
        assert all(np.array_equal(a, b) for a, b in zip((one, two), again, strict=True))
        settings = client.get("/playground/settings").json()
        assert (settings["uses_steps"], settings["image_size"]) == (family == "diffusion", 16)
    assert client.post(IMAGES, json=asked).json()["ignored"] == []


def test_a_model_of_one_pass_has_one_kind_of_order(service: Callable[..., Any]) -> None:
    limits = service().service.limits
    asked = {"prompt": "a star", "seed": 1, "num_inference_steps": 7, "negative_prompt": "blur"}
    request = limits.parse(json.dumps(asked).encode())
    side: dict[str, Any] = {"image_size": 8, "granularity": 0, "samplers": ()}
    one_pass: Any = SimpleNamespace(**side, uses_steps=False, uses_seed=False)
    (order,) = limits.orders(request, one_pass)
    assert (order.steps, order.guidance_scale, order.negative_prompt) == (1, 1.0, None)
    assert order.ignored == ("num_inference_steps", "negative_prompt", "seed")
    (steps,) = limits.orders(request, SimpleNamespace(**side, uses_steps=True, uses_seed=True))
    assert steps.ignored == () and steps.steps == 7
