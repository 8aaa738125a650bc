"""What stands before the image API in Serve's HTTP proxy: a request whose replica dies is asked again of another one.

Serve itself asks again only while no replica has taken the request. One that dies afterwards (killed, out of memory,
its machine gone) leaves the client without an answer. A request of this API may be asked twice: a picture that nobody
received is no harm. The second asking carries the same request id.

A stream whose replica died is begun again inside the same answer: events of its beginning come a second time.

Serve reads ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` when a proxy starts, see
:data:`components.runtime.cluster.QUIET`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.door import Door

TRIES = 3  # more of them and a request that itself kills replicas would take too many with it
PAUSE_S = 0.2  # between them; time for Serve to notice
MOST_KEPT = 4 * 1024 * 1024  # bytes of a body; a larger one is not asked again
_MARK = "content-security-policy"  # every answer of the application has it, none of Serve's own
_EVENTS = "text/event-stream"
_log = logging.getLogger("ray.serve")


def middlewares() -> list[Middleware]:
    """Called by Serve in each of its proxies. The first is the outermost."""
    return [Middleware(Door), Middleware(Repeating)]


class Repeating:
    """ASGI: asks ``app`` again where it ends without a whole answer, and words what Serve itself answers."""

    def __init__(self, app: ASGIApp, tries: int = TRIES, pause_s: float = PAUSE_S) -> None:
        self._app, self._tries, self._pause = app, tries, pause_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # these are Serve's own
            await self._app(scope, receive, send)
            return
        asked = _Asked(receive)
        answer = _Answer(send)
        headers = MutableHeaders(raw=list(scope["headers"]))
        request_id = headers.setdefault("x-request-id", uuid.uuid4().hex)
        for _ in range(self._tries):
            # Serve writes into the scope: each try has a copy of its own
            await self._app({**scope, "headers": list(headers.raw)}, asked.again(), answer.begin())
            if answer.whole or asked.gone:
                return
            if not asked.kept or not answer.can_go_on:
                break
            _log.warning("The replica of request %s died before its answer was whole", request_id)
            await asyncio.sleep(self._pause)
        if not answer.started:
            message = "The server that drew this died, and so did the next ones. Try again."
            await answer.refuse(503, "replica_lost", message, request_id)
        # else: the connection is closed by the server, so that the client sees that the answer is not whole


class _Asked:
    """The request's messages, kept so that it can be asked again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._bytes = 0

    @property
    def gone(self) -> bool:
        """The client has left."""
        return any(message["type"] == "http.disconnect" for message in self._messages)

    @property
    def kept(self) -> bool:
        """It is small enough to be asked again."""
        return self._bytes <= MOST_KEPT

    def again(self) -> Receive:
        """A ``receive`` that begins with what was received before."""
        at = 0

        async def receive() -> Message:
            nonlocal at
            if at < len(self._messages):
                message = self._messages[at]
            else:
                message = await self._receive()
                self._bytes += len(message.get("body", b""))
                if self.kept:
                    self._messages.append(message)
                else:
                    self._messages.clear()
            at += 1
            return message

        return receive


class _Answer:
    """What is sent to the client, of all tries together: one start, and one end."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # of this try, held back until its first piece of the body
        self.started = self.whole = False
        self.can_go_on = True  # with what another try says: nothing was sent yet, or events

    def begin(self) -> Send:
        """A ``send`` for the next try."""
        self._start = None
        return self._take

    async def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        if self._start is not None and _is_serves_own(self._start):
            if not message.get("more_body"):
                await self._reword(self._start)
            return
        if not self.started and self._start is not None:
            self.started = True
            self.can_go_on = Headers(raw=self._start["headers"]).get("content-type", "").startswith(_EVENTS)
            await self._send(self._start)
        await self._send(message)
        self.whole = self.whole or not message.get("more_body", False)

    async def _reword(self, start: Message) -> None:
        """Serve's own answers: it knows no such application (any more), or has no replica to give the request to."""
        if self.started:  # of an earlier try: it stays as it is
            return
        request_id = Headers(raw=start["headers"]).get("x-request-id", "")
        status = int(start["status"])
        if status in (404, 429, 500, 502, 503):
            text = "The server is being started, moved or stopped. Try again."
            await self.refuse(503, "shutting_down", text, request_id)
        elif status == 408:
            await self.refuse(503, "timeout", "This took too long. Try again.", request_id)
        else:
            await self.refuse(status, "server_error", "The server could not answer.", request_id)

    async def refuse(self, status: int, code: str, message: str, request_id: str) -> None:
        """An error in OpenAI's shape."""
        error = {"message": message, "type": "server_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        headers = {
            "content-type": "application/json", "content-length": str(len(body)), "cache-control": "no-store",
            "retry-after": "5", "x-content-type-options": "nosniff", "x-request-id": request_id,
        }  # fmt: skip
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        self.started = self.whole = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})


def _is_serves_own(start: Message) -> bool:
    return int(start["status"]) >= 400 and _MARK not in Headers(raw=start["headers"])
