"""What stands before the API in Serve's proxy, over applications that break off as Serve's proxy does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from serving.proxy import MOST_KEPT, TRIES, Repeating

MARKED = [(b"content-security-policy", b"default-src 'none'")]


class Dying:
    """An application whose first ``deaths`` answers break off after ``begun`` pieces of their body."""

    def __init__(self, deaths: int, begun: int = -1, kind: bytes = b"application/json") -> None:
        self.deaths, self.begun, self.kind = deaths, begun, kind
        self.bodies: list[bytes] = []
        self.ids: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        self.ids += [value.decode() for name, value in scope["headers"] if name == b"x-request-id"]
        scope["headers"].append((b"added-by-serve", b"1"))
        dies = len(self.bodies) <= self.deaths
        if dies and self.begun < 0:
            return
        await send({"type": "http.response.start", "status": 200, "headers": [*MARKED, (b"content-type", self.kind)]})
        for piece in range(2):
            if dies and piece >= self.begun:
                return
            await send({"type": "http.response.body", "body": f"{piece} ".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"end", "more_body": False})


def ask(app: Any, **request: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app=Repeating(app, pause_s=0.0))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/v1/images/generations", **request)

    return asyncio.run(one())


@pytest.mark.parametrize("begun", [-1, 0])
def test_a_request_whose_replica_died_is_asked_again(begun: int) -> None:
    app = Dying(deaths=2, begun=begun)
    answer = ask(app, content=b"a" * 100_000)
    assert (answer.status_code, answer.text) == (200, "0 1 end")
    assert app.bodies == [b"a" * 100_000] * 3 and len(set(app.ids)) == 1 and len(app.ids) == 3


def test_the_clients_own_request_id_is_kept() -> None:
    app = Dying(deaths=1)
    ask(app, content=b"{}", headers={"X-Request-ID": "mine"})
    assert app.ids == ["mine", "mine"]


def test_a_stream_is_begun_again_inside_the_same_answer() -> None:
    app = Dying(deaths=1, begun=1, kind=b"text/event-stream; charset=utf-8")
    answer = ask(app, content=b"{}")
    assert answer.status_code == 200 and answer.text == "0 0 1 end"


def test_half_a_plain_answer_is_not_mended() -> None:
    app = Dying(deaths=1, begun=1)
    with pytest.raises((httpx.HTTPError, AssertionError)):  # the server closes: httpx's transport asserts that it ended
        ask(app, content=b"{}")
    assert len(app.bodies) == 1


def test_replicas_that_keep_dying_are_told_in_openais_shape() -> None:
    app = Dying(deaths=99)
    answer = ask(app, content=b"{}")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "replica_lost"
    assert int(answer.headers["retry-after"]) >= 1 and answer.headers["x-request-id"] == app.ids[0]
    assert len(app.bodies) == TRIES


def test_a_body_too_large_to_keep_is_asked_once() -> None:
    app = Dying(deaths=1)

    async def pieces() -> Any:
        for _ in range(MOST_KEPT // 100_000 + 2):
            yield b"a" * 100_000

    assert ask(app, content=pieces()).status_code == 503 and len(app.bodies) == 1


@pytest.mark.parametrize(("status", "code"), [(404, "shutting_down"), (503, "shutting_down"), (408, "timeout")])
def test_what_serve_itself_answers_is_worded(status: int, code: str) -> None:
    async def serves(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Path '/' not found. Ping http://.../-/routes"})

    answer = ask(serves)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == code and "-/routes" not in answer.text


def test_the_applications_own_errors_are_its_own() -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": MARKED})
        await send({"type": "http.response.body", "body": json.dumps({"error": 1}).encode()})

    answer = ask(refuses)
    assert answer.status_code == 500 and answer.json() == {"error": 1}


def test_a_client_that_left_is_not_asked_for_again() -> None:
    calls = []

    async def app(scope: Any, receive: Callable[[], Any], send: Any) -> None:
        calls.append(await receive())

    async def run() -> None:
        messages = [{"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError("nobody listens")

        scope = {"type": "http", "path": "/v1/models", "headers": [], "method": "GET"}
        await Repeating(app, pause_s=0.0)(scope, receive, send)

    asyncio.run(run())
    assert len(calls) == 1
