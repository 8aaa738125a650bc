"""`atelier verify`: what it can know of a file, and what it must not claim."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from components.contracts.errors import InputError
from serving.api import build_api
from serving.auth import list_keys, make_key
from serving.erasing import erase
from serving.logbook import Entry, Logbook, read_logbook
from serving.provenance import encode, read_pixels
from serving.verifying import as_lines, verify
from serving.watermark import Watermark
from tests.serving.scenes import scene


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def made(home: Path, request: str = "r1", watermark: bool = True, format: str = "png") -> bytes:
    """A picture as it is sent, with its row in the logbook."""
    pixels = scene(3)
    if watermark:
        pixels = Watermark.of(home).embed(pixels, request)
    data = encode(pixels, format, 90, model="atelier", version="4", seed=9, request_id=request)  # type: ignore[arg-type]
    book = Logbook(home / "logbook", f"w{request}", flush_s=60)
    sha256 = hashlib.sha256(data).hexdigest()
    book.append(Entry(request, 200, 0.1, "k1", "a star", 9, 16, 2.0, "4", image_sha256=sha256, user="lovelace"))
    book.close()
    return data


def test_a_file_as_it_was_sent(home: Path) -> None:
    found = verify(made(home), home)
    assert found.ours and found.marked and found.metadata["seed"] == "9"
    assert found.served["request_id"] == "r1" and [row["request_id"] for row in found.requests] == ["r1"]
    text = "\n".join(as_lines(found))
    assert "this very file was sent: request r1" in text and "made by a trained model" in text and "drawn here" in text
    assert "a star" not in text and "lovelace" not in text


def test_a_copy_without_metadata_is_known_by_its_mark(home: Path) -> None:
    data = made(home)
    copy = encode(read_pixels(data)[:, ::-1], "jpeg", 75, model="other", version="1", seed=0, request_id="forged")
    found = verify(copy, home)
    assert found.ours and not found.served and [row["request_id"] for row in found.requests] == ["r1"]
    assert "anybody can write this" in "\n".join(as_lines(found))


def test_metadata_alone_proves_nothing(home: Path) -> None:
    made(home, "r0")
    forged = encode(scene(8), "png", 90, model="atelier", version="4", seed=9, request_id="r0")
    found = verify(forged, home)
    assert found.metadata["request_id"] == "r0" and not found.ours and found.marked is False
    assert "not shown to be drawn here" in as_lines(found)[-1]


def test_a_home_that_never_served(home: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    found = verify(encode(pixels, "webp", 90, model="m", version="1", seed=1, request_id="r"), home / "none")
    assert found.marked is None and not found.ours and found.logbook == 0
    assert not (home / "none").exists()  # looking makes nothing
    assert "cannot be read" in "\n".join(as_lines(found))


def test_after_the_user_was_erased_the_mark_remains(home: Path) -> None:
    data = made(home)
    assert erase(home, user="lovelace", key_id="k1").rows == 1
    found = verify(data, home)
    assert found.marked and not found.served and not found.requests
    assert "no longer holds its request" in "\n".join(as_lines(found))


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_what_the_api_sends_is_known(service: Callable[..., Any], format: str) -> None:
    parts = service(sizes=("64x64",))
    quiet = make_key(parts.home / "keys.json", "quiet", log_prompts=False)
    client = TestClient(build_api(replace(parts.service, watermark=Watermark.of(parts.home))))
    body = {"prompt": "a star for ada@example.org", "size": "64x64", "output_format": format, "user": "lovelace"}
    for key in (parts.key, quiet):
        answer = client.post("/v1/images/generations", json=body, headers={"Authorization": f"Bearer {key}"})
        data = base64.b64decode(answer.json()["data"][0]["b64_json"])
        parts.service.logbook.flush()
        found = verify(data, parts.home)
        request = answer.headers["x-request-id"]
        assert found.marked and found.served["request_id"] == request == found.metadata["request_id"]
        assert [row["request_id"] for row in found.requests] == [request]
    kept = {row["key_id"]: (row["prompt"], row["user"]) for row in read_logbook(parts.home / "logbook").to_pylist()}
    first, second = (key.id for key in list_keys(parts.home / "keys.json"))
    assert kept[second] == (None, None)
    assert kept[first][0] == "a star for [email]" and kept[first][1] not in (None, "lovelace")
    assert erase(parts.home, user="lovelace").rows == 1  # the other row names nobody


def test_no_picture(home: Path) -> None:
    with pytest.raises(InputError):
        verify(b"no picture", home)
