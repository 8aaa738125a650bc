"""The examples of docs/serving.md do what it says: each is run as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from components.contracts.recipe import Serve
from serving.images import ImageStore
from tests.serving.live import IMAGES, client, live

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def documented(service: Callable[..., Any], make_painter: Any) -> Iterator[Any]:
    """A server with the recipe of the page."""
    (recipe,) = (yaml.safe_load(block)["serve"] for block in blocks("yaml") if "templates" in block)
    parts = service(make_painter(seconds=0.01), **recipe)
    parts.service = replace(parts.service, images=ImageStore.of(parts.service.limits.serve, parts.home))
    with live(parts.service) as url:
        parts.url = url
        yield parts


def test_python(documented: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    examples = blocks("python")
    assert len(examples) == 2
    for example in examples:
        here = example.replace("http://127.0.0.1:8000", documented.url).replace('"KEY"', repr(documented.key))
        assert here != example
        exec(compile(here, "docs/serving.md", "exec"), {})
    assert [Image.open(tmp_path / f"star-{seed}.webp").format for seed in (7, 8)] == ["WEBP"] * 2
    said = capsys.readouterr().out.split("\n")
    assert [line.split()[0] for line in said if line][-1] == "picture" and sum("preview" in line for line in said) == 2
    assert any(line.startswith(("queued", "drawing")) for line in said)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(documented: Any, until: Callable[..., None]) -> None:
    outputs = []
    for example in blocks("sh"):
        if "DELETE" in example:
            waiting = threading.Thread(target=_ask_for_long, args=(documented,))
            documented.painter.gate.clear()
            waiting.start()
            until(lambda: documented.service.engine.busy)
        script = example.replace("http://127.0.0.1:8000", documented.url).replace("curl ", "curl --noproxy '*' ")
        environment = {"ATELIER_KEY": documented.key, "PATH": "/usr/local/bin:/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=180, env=environment)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    documented.painter.gate.set()
    waiting.join(20)
    assert outputs[0].count(f"{documented.url}/v1/images/") == 2
    assert outputs[1].count("event: image_generation.partial_image") == 1
    assert outputs[1].count("event: image_generation.completed") == 1
    assert outputs[2] == '{"id":"my-request-1","object":"request","cancelled":true}'


def test_every_key_of_the_recipe_that_is_named_exists() -> None:
    named = set(re.findall(r"`serve\.([a-z_]+)", TEXT))
    assert named and named <= set(Serve.model_fields)


def _ask_for_long(documented: Any) -> None:
    with client(documented.url, documented.key, **{"X-Request-ID": "my-request-1"}) as it:
        it.post(IMAGES, json={"prompt": "a star"})
