"""Load shedding in Serve's HTTP proxy: while the replicas' queue is full, most requests are refused before it.

A refusal by a replica takes it, the proxy and the way between them about as long as a step of a picture. Of many times
more requests than can be drawn the refusals alone would leave little of the processor for the pictures. So after a
refusal only as many are let through as places come free in the queue; the others get the same refusal at once. When
none was refused for the time of :data:`PLACES` places, everybody is let through again.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PLACES = 8
PATH = "/v1/images/generations"
PLACE = "x-queue-place-s"  # on a replica's answer: predicted seconds from place to place. Clients do not get it
TURNED_AWAY = "x-turned-away"  # on a request to a replica, which counts them: how many were refused here since the last
_FASTER = 0.8  # places come free sooner than is predicted, too: the queue should stay full


@dataclass
class _Refusal:
    start: Message
    body: bytes
    place_s: float
    at: float  # when it was given, on the monotonic clock


class Door:
    """ASGI: lets requests for pictures through to ``app`` at the pace at which it can take them."""

    def __init__(self, app: ASGIApp, now: Callable[[], float] = time.monotonic) -> None:
        self._app, self._now = app, now
        self._refusal: _Refusal | None = None
        self._next = 0.0
        self._turned_away = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(raw=list(scope["headers"]))
        if (refusal := self._shut()) is not None:
            self._turned_away += 1
            await self._refuse(refusal, headers.get("x-request-id") or uuid.uuid4().hex, send)
            return
        del headers[TURNED_AWAY]  # what a client says of it is not asked for
        if self._turned_away:
            headers[TURNED_AWAY] = str(self._turned_away)
            self._turned_away = 0
        await self._app({**scope, "headers": headers.raw}, receive, _Watched(self, send))

    def learn(self, start: Message, body: bytes, place_s: float) -> None:
        """A replica has refused: its queue is full, and a place comes free every ``place_s`` seconds."""
        now = self._now()
        if self._shut_until() < now:
            self._next = now + _FASTER * place_s
        self._refusal = _Refusal(start, body, place_s, now)

    def _shut(self) -> _Refusal | None:
        """What to refuse a request with that comes now; None where it is let through."""
        now, refusal = self._now(), self._refusal
        if refusal is None or now >= self._shut_until():
            self._refusal = None
            return None
        if now < self._next:
            return refusal
        self._next = max(self._next, now - refusal.place_s) + _FASTER * refusal.place_s
        return None

    def _shut_until(self) -> float:
        return self._refusal.at + PLACES * self._refusal.place_s if self._refusal else -math.inf

    async def _refuse(self, refusal: _Refusal, request_id: str, send: Send) -> None:
        headers = MutableHeaders(raw=list(refusal.start["headers"]))
        headers["x-request-id"] = request_id
        await send({**refusal.start, "headers": headers.raw})
        await send({"type": "http.response.body", "body": refusal.body})


class _Watched:
    """``send``, which tells the door of refusals."""

    def __init__(self, door: Door, send: Send) -> None:
        self._door, self._send = door, send
        self._start: Message | None = None
        self._place_s = 0.0
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 429:
            headers = MutableHeaders(raw=list(message["headers"]))
            if place := headers.get(PLACE):
                self._place_s = float(place)
                del headers[PLACE]
                self._start = message = {**message, "headers": headers.raw}
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                self._door.learn(self._start, self._body, self._place_s)
        await self._send(message)
