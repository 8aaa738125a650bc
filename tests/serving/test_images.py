"""Pictures sent as links: kept for a time and up to a size, found by nothing but their link."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.api import build_api
from serving.images import ImageStore

IMAGES = "/v1/images/generations"


@pytest.fixture
def linked(service: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A service that sends links, and a client with its key."""

    def make(**limits: Any) -> Any:
        parts = service(**limits)
        whole = replace(parts.service, images=ImageStore.of(parts.service.limits.serve, tmp_path))
        client = TestClient(build_api(whole), base_url="http://images.test", raise_server_exceptions=False)
        parts.client, parts.bearer = client, {"Authorization": f"Bearer {parts.key}"}
        return parts

    return make


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_link_gives_the_picture_to_whoever_has_it(linked: Callable[..., Any], kind: str) -> None:
    it = linked()
    asked = {"prompt": "a star", "seed": 3, "n": 2, "response_format": "url", "output_format": kind}
    answer = it.client.post(IMAGES, json=asked, headers=it.bearer)
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["data"]
    assert first["b64_json"] is None and first["url"].startswith("http://images.test/v1/images/")
    assert first["url"] != second["url"] and answer.json()["output_format"] == kind
    picture = it.client.get(second["url"])  # without a key
    assert picture.status_code == 200 and picture.headers["content-type"] == f"image/{kind}"
    assert "immutable" in picture.headers["cache-control"] and "nosniff" in picture.headers["x-content-type-options"]
    pixels = np.asarray(Image.open(BytesIO(picture.content)).convert("RGB")).astype(int)
    assert np.abs(pixels - it.painter.colour("a star", 4).astype(int)).max() <= (0 if kind == "png" else 12)
    token = second["url"].rpartition("/")[2]
    for wrong in (token[:-1], "A" * 43 + ".png", token + ".png", "..%2f..%2fkeys.json", "../keys.json", "%00.png"):
        gone = it.client.get(f"/v1/images/{wrong}")
        assert gone.status_code == 404 and gone.json()["error"]["code"] in ("image_not_found", "not_found")


def test_links_begin_with_the_public_address_where_there_is_one(linked: Callable[..., Any]) -> None:
    it = linked(public_url="https://images.example.org/")
    answer = it.client.post(IMAGES, json={"prompt": "a star", "response_format": "url"}, headers=it.bearer)
    assert answer.json()["data"][0]["url"].startswith("https://images.example.org/v1/images/")


def test_a_server_without_a_store_sends_no_links(service: Callable[..., Any]) -> None:
    parts = service()
    client = TestClient(build_api(parts.service))
    bearer = {"Authorization": f"Bearer {parts.key}"}
    answer = client.post(IMAGES, json={"prompt": "x", "response_format": "url"}, headers=bearer)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "response_format"


def test_a_full_disk_is_said_and_pictures_come_inside_the_answer(linked: Callable[..., Any], tmp_path: Path) -> None:
    it = linked()
    (tmp_path / "images").write_text("a file where the folder should be")
    asked = {"prompt": "a star", "response_format": "url"}
    answer = it.client.post(IMAGES, json=asked, headers=it.bearer)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "links_unavailable"
    assert answer.headers["retry-after"] and str(tmp_path) not in answer.text
    assert it.client.post(IMAGES, json={"prompt": "a star"}, headers=it.bearer).status_code == 200


def test_a_picture_is_gone_after_its_time(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", 10_000, keep_s=60)
    old, new = store.put(b"old", "png"), store.put(b"new", "webp")
    past = time.time() - 61
    os.utime(tmp_path / "images" / old, (past, past))
    half = tmp_path / "images" / ".tmp-killed"
    half.write_bytes(b"half")
    os.utime(half, (past, past))
    assert store.get(old) is None and store.get(new) == b"new"
    store.sweep()
    assert [path.name for path in (tmp_path / "images").iterdir()] == [new]
    assert (tmp_path / "images").stat().st_mode & 0o077 == 0


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_the_folder_never_holds_more_than_a_sixteenth_too_much(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("sweep")
    store, most = ImageStore(folder, 1600, keep_s=3600), 1600
    names = []
    for number, size in enumerate(sizes):
        names.append(store.put(bytes(size), "png"))
        os.utime(folder / names[-1], (time.time() - 1000 + number, time.time() - 1000 + number))
        assert sum(path.stat().st_size for path in folder.iterdir()) <= most + most // 16
    assert store.get(names[-1]) == bytes(sizes[-1])
    kept = [name for name in names if store.get(name) is not None]
    assert kept == names[len(names) - len(kept) :], "the oldest go first"
