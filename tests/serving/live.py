"""The API on a real HTTP server of its own thread, and what a client needs to read its answers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn

from serving.api import build_api
from serving.generation import Service
from tests.ports import unused_port

IMAGES = "/v1/images/generations"


@contextlib.contextmanager
def live(service: Service) -> Iterator[str]:
    """The address of a server for ``service``, which runs inside the block."""
    port = unused_port()
    config = uvicorn.Config(build_api(service), host="127.0.0.1", port=port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)


def client(url: str, key: str, **headers: str) -> httpx.Client:
    """A client that holds a key."""
    sent = {"Authorization": f"Bearer {key}", **headers}
    return httpx.Client(base_url=url, headers=sent, timeout=30, trust_env=False)


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The data of each server-sent event, as they come; the name of an event must be the type in its data."""
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = json.loads(line.removeprefix("data: "))
            assert data["type"] == name
            yield data
        else:
            assert line == "" or line.startswith(":"), line
