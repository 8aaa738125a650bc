"""No path, URL or code that a client sends is ever opened: watched from inside the interpreter while requests come."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors import SafetensorError

from components.contracts.errors import AtelierError
from components.runtime.storage import Artifact
from serving.api import build_api

MARK = "zqxj-marker"
_watching: list[tuple[str, str]] | None = None
_EVENTS = ("open", "os.", "socket.connect", "socket.getaddrinfo", "subprocess", "exec", "compile", "import", "urllib",
           "ctypes.dlopen", "shutil.", "glob.", "pickle.find_class")  # fmt: skip


def _hook(event: str, args: tuple[Any, ...]) -> None:  # audit hooks cannot be taken away: this one sleeps mostly
    if _watching is not None and event.startswith(_EVENTS):
        _watching.append((event, repr(args)[:2000]))


sys.addaudithook(_hook)


@pytest.fixture
def watched() -> Iterator[list[tuple[str, str]]]:
    """What the interpreter opens, runs, imports and connects to meanwhile: (event, arguments)."""
    global _watching
    _watching = []
    yield _watching
    _watching = None


def hostile(tmp_path: Path) -> list[str]:
    """Names of what must not be touched; each holds the marker."""
    secret = tmp_path / f"{MARK}.safetensors"
    secret.write_bytes(b"x" * 64)
    return [
        str(secret), f"../../{MARK}", f"file://{secret}", f"http://127.0.0.1:9/{MARK}", f"//{MARK}/share",
        f"{MARK}/model", f"__import__('os').system('touch {MARK}')", f"{{{{{MARK}}}}}", f"${{{MARK}}}", f"`{MARK}`",
        f"{MARK}\x00.png",
    ]  # fmt: skip


def test_what_clients_send_is_only_text(
    service: Callable[..., Any], tmp_path: Path, watched: list[tuple[str, str]]
) -> None:
    parts = service()
    client = TestClient(build_api(parts.service), raise_server_exceptions=False)
    client.headers["Authorization"] = f"Bearer {parts.key}"
    client.post("/v1/images/generations", json={"prompt": "what is imported late is imported now"})
    texts = hostile(tmp_path)
    watched.clear()
    for text in texts:
        for field in ("prompt", "negative_prompt", "style", "user", "model", "size", "sampler", "quality", "version",
                      "response_format", "output_format", "background", "image", "mask", "url", "lora"):  # fmt: skip
            answer = client.post("/v1/images/generations", json={"prompt": "a star", field: text})
            assert answer.status_code in (200, 400, 403, 404), (field, text, answer.text)
        for header in ("X-Request-ID", "X-Forwarded-For", "Authorization"):
            value = text.replace("\x00", "")
            client.post("/v1/images/generations", json={"prompt": "a star"}, headers={header: value})
        for path in ("/v1/images/", "/v1/models/", "/v1/requests/", "/v1/users/", "/playground/", "/"):
            name = text.replace("\x00", "%00").lstrip("/")
            assert client.get(path + name).status_code in (200, 400, 401, 404, 405), (path, name)
            client.delete(path + name)
    parts.service.logbook.flush()
    assert any(event == "open" for event, _ in watched)  # the watch works: keys and logbook were opened
    touched = [(event, said) for event, said in watched if MARK in said]
    assert not touched, touched[:5]
    reached = [(event, said) for event, said in watched if event.startswith(("socket.", "subprocess", "urllib"))]
    assert not reached, reached[:5]
    assert not Path(MARK).exists()


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.integration
def test_a_model_with_pickled_weights_is_refused_and_nothing_of_it_runs(
    tmp_path: Path, tiny_models: Callable[[int], Artifact]
) -> None:
    """Weights are read as safetensors only: in their absence a pickle beside them is not opened."""
    from components.models.families import load_generator

    fired = tmp_path / "fired"
    bomb = pickle.dumps(Bomb(fired))
    whole = tiny_models(0).path("model_index.json").parent
    weights = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert len(weights) == 3
    for name in weights:
        folder = tmp_path / f"broken-{name.parent.name}"
        shutil.copytree(whole, folder)
        (folder / name).unlink()
        for pickled in (name.with_suffix(".bin"), name.parent / "pytorch_model.bin", name.with_suffix(".pt"),
                        name.parent / "diffusion_pytorch_model.bin", name.with_suffix(".ckpt")):  # fmt: skip
            (folder / pickled).write_bytes(bomb)
        with pytest.raises(AtelierError):
            load_generator(folder, "cpu")
        assert not fired.exists(), name
        (folder / name).write_bytes(bomb)  # a pickle by another name
        with pytest.raises((AtelierError, SafetensorError)):
            load_generator(folder, "cpu")
        assert not fired.exists(), name
    pickle.loads(bomb)
    assert fired.exists()  # the bomb works
