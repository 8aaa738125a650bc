"""A person at the page at ``/``: a browser, a server of the test's own, and what a test asks of them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.api import build_api
from serving.engine import Served
from serving.logbook import read_logbook
from serving.moderation import Moderator
from serving.routing import Router
from tests.ports import unused_port
from tests.serving.browser import Browser, Page, find_browser, started

IDLE = "document.getElementById('cancel').hidden"
COLOURS = """Promise.all([...document.querySelectorAll("#lanes .filled img")].map(async (image) => {
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
  canvas.drawImage(image, 0, 0);
  return { alt: image.alt, colour: [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)] };
}))"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for the whole file; every page has storage of its own."""
    binary = find_browser()
    if binary is None:
        pytest.skip("no Chromium: install chromium, chromium-browser or google-chrome, or name one in $CHROMIUM")
    with started(binary, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


class Visit:
    """A person at the page of a server: ``page`` is the tab, ``parts`` what is behind the server."""

    def __init__(self, page: Page, url: str, parts: Any) -> None:
        self.page, self.url, self.parts = page, url, parts

    def enter(self, prompt: str, **fields: Any) -> None:
        """Write the prompt, set other controls by their id, and press Enter."""
        for name, value in fields.items():
            self.page.evaluate(
                f"(() => {{ const c = document.getElementById('{name}'); c.value = {value!r};"
                " c.dispatchEvent(new Event('input', { bubbles: true })); })()"
            )
        self.page.click("#prompt")
        self.page.evaluate("document.getElementById('prompt').select()")
        self.page.type(prompt)
        self.page.press("Enter")

    def pictures(self, count: int) -> list[dict[str, Any]]:
        """The finished pictures once there are ``count``: text for those who do not see, and the colour of a corner."""
        self.page.until(f"{IDLE} && document.querySelectorAll('#lanes .filled img.small').length === {count}")
        shown: list[dict[str, Any]] = self.page.evaluate(COLOURS)
        return shown

    def rows(self) -> list[dict[str, Any]]:
        """The logbook."""
        self.parts.service.logbook.flush()
        rows: list[dict[str, Any]] = read_logbook(self.parts.home / "logbook").to_pylist()
        return rows

    def ask(self, prompt: str) -> httpx.Response:
        """The same server asked by somebody else."""
        headers = {"Authorization": f"Bearer {self.parts.key}"}
        body = {"prompt": prompt, "num_inference_steps": 4}
        return httpx.post(f"{self.url}/v1/images/generations", json=body, headers=headers, timeout=60, trust_env=False)


@pytest.fixture
def visit(
    chromium: Browser, service: Callable[..., Any], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Visit]]:
    """Opens the page of a new server; at the end no script may have failed and nothing may have come from elsewhere.

    With $SCREENSHOTS, a folder, what is in sight at the end is kept there under the name of the test.
    """
    with contextlib.ExitStack() as stack:

        def make(
            *args: Any,
            with_key: bool = True,
            trial: Any = None,  # a painter that is the challenger
            pictures: Any = None,  # looks at what was drawn, as :mod:`serving.moderation_pictures` does
            width: int = 1200,
            height: int = 860,
            **limits: Any,
        ) -> Visit:
            parts = service(*args, **limits)
            serve = parts.service.limits.serve
            if serve.blocked_words or pictures:
                moderator = Moderator(serve.moderation, serve.blocked_words, pictures=pictures)
                parts.service = replace(parts.service, moderator=moderator)
            if trial is not None:
                _try(parts, trial)
            url = stack.enter_context(_serving(parts))
            page = stack.enter_context(chromium.page(width, height))
            stack.callback(_is_clean, page, url)
            if folder := os.environ.get("SCREENSHOTS"):
                stack.callback(page.screenshot, Path(folder) / f"{request.node.name}.png")
            if with_key:
                page.open(f"{url}/version")  # of the same origin: where the key is kept
                page.evaluate(f"sessionStorage.setItem('atelier-key', {parts.key!r})")
            page.open(f"{url}/")
            page.until("document.getElementById('served').classList.contains('ready')")
            return Visit(page, url, parts)

        yield make


def _try(parts: Any, painter: Any) -> None:
    """Make ``painter`` the challenger, version 2, with what the registry would say of both versions."""
    router = Router(parts.service.engine, parts.service.metrics)
    router.trial("challenger", Served("2", painter, "e" * 64))
    parts.service = replace(parts.service, router=router)
    held, fell = "fidelity is 0.91, not below the floor 0.85", "fidelity fell"
    parts.service.follower._tags = {
        "1": {"verdict": "pass", "reasons": held},
        "2": {"verdict": "fail", "reasons": f"{fell}\n{held}", "failures": fell},
    }


@contextlib.contextmanager
def _serving(parts: Any) -> Iterator[str]:
    """The service's API on a port of its own, in a thread; the address."""
    import uvicorn

    port = unused_port()
    server = uvicorn.Server(uvicorn.Config(build_api(parts.service), port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        parts.painter.gate.set()
        server.should_exit = True
        thread.join(20)


def _is_clean(page: Page, url: str) -> None:
    page.evaluate("document.title")  # reads what is still on its way
    assert page.problems == []
    assert page.addresses and all(one.startswith((f"{url}/", "data:")) for one in page.addresses)
