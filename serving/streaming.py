"""Answers that come piece by piece, as server-sent events (WHATWG HTML, 9.2) in the shape of OpenAI's image streams."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.admission import Asked
from serving.answers import CompletedEvent, ErrorEvent, Event, PartialImageEvent, ProgressEvent, RefusedEvent
from serving.delivery import Delivery, Picture
from serving.drawing import Drawing
from serving.engine import Drawn, Preview
from serving.schemas import ApiError

MEDIA_TYPE = "text/event-stream"
_LOOK_S = 0.25  # between two looks at how far it is
_IDLE_S = 15.0  # after which a comment says that the connection lives: proxies close what is silent


class EventStream(Response):
    """Sends what ``events`` yields, its first piece at once, and closes it when the answer is over or given up.

    It does not look whether the client is there, unlike starlette's own: :class:`serving.drawing.Drawing` does.
    """

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        self.status_code, self.background = 200, None
        self._events = events
        self.init_headers({"X-Accel-Buffering": "no", **headers})  # nginx would hold events back

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)  # from now on, closing the events ends what they are of
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Events:
    """The events of one request, from its first progress to its last picture.

    ``sent`` are the pictures that were yielded, ``drawn`` what the engine made of each order.
    """

    def __init__(self, asked: Asked, drawing: Drawing, delivery: Delivery, model: str) -> None:
        assert asked.body is not None and asked.served is not None, "the request was admitted"
        self._asked, self._body, self._served = asked, asked.body, asked.served
        self._drawing, self._delivery, self._model = drawing, delivery, model
        self._previews: dict[int, int] = {}  # of each picture, so far
        self.sent: list[Picture] = []
        self.drawn: dict[int, Drawn] = {}

    async def encoded(self) -> AsyncGenerator[bytes, None]:
        """The events as they are sent.

        Raises:
            whatever ended the request before its last picture; see :meth:`serving.drawing.Drawing.happened`.
        """
        yield b": accepted\n\n"
        told: dict[str, Any] = {}
        looked, last = -math.inf, time.monotonic()
        while len(self.drawn) < len(self._asked.orders):
            if self._body.progress and time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                if (now := self._progress()) and now != told:
                    told, last = now, looked
                    yield encoded(ProgressEvent(**self._common(), **now))
            if time.monotonic() - last >= _IDLE_S:
                last = time.monotonic()
                yield b": still drawing\n\n"
            happening = await self._drawing.happened(_LOOK_S if self._body.progress else _IDLE_S)
            for event in await self._told(*happening) if happening else ():
                yield encoded(event)
                last = time.monotonic()

    async def _told(self, number: int, what: Preview | Future[Drawn]) -> Sequence[Event]:
        """The events of what has come of the order ``number``."""
        if isinstance(what, Future):
            drawn = self.drawn[number] = what.result()
            pictures = await run_in_threadpool(self._delivery.pictures, number, drawn)
            self.sent += pictures
            return [self._finished(number, index, picture, drawn) for index, picture in enumerate(pictures)]
        shown = await run_in_threadpool(self._delivery.preview, number, what.image, what.pixels)
        return [] if shown is None else [self._partial(number, what, shown)]

    def _common(self) -> dict[str, Any]:
        return {"created_at": int(time.time()), "request_id": self._asked.id}

    def _progress(self) -> dict[str, Any]:
        """Of all orders together; empty when there is nothing left to say."""
        progress = [ticket.progress() for ticket in self._drawing.tickets]
        waiting = [each for each in progress if each.state != "done"]
        if not waiting:
            return {}
        left = max(each.seconds_left for each in waiting)
        return {
            "state": "queued" if all(each.state == "queued" for each in progress) else "drawing",
            "ahead": max(each.ahead for each in waiting),
            "step": sum(each.step for each in progress),
            "steps": sum(each.steps for each in progress),
            "seconds_left": round(left, 1) if left < math.inf else None,
        }

    def _picture(self, number: int, index: int, height: int, width: int) -> dict[str, Any]:
        before = sum(len(order.seeds) for order in self._asked.orders[:number])
        return self._common() | {
            "image_index": before + index, "size": f"{width}x{height}", "output_format": self._body.format,
        }  # fmt: skip

    def _partial(self, number: int, preview: Preview, shown: str) -> PartialImageEvent:
        fields = self._picture(number, preview.image, *preview.pixels.shape[:2])
        count = self._previews[fields["image_index"]] = self._previews.get(fields["image_index"], -1) + 1
        return PartialImageEvent(
            **fields, b64_json=shown, partial_image_index=count, step=preview.step, steps=preview.steps
        )

    def _finished(self, number: int, index: int, picture: Picture, drawn: Drawn) -> CompletedEvent | RefusedEvent:
        fields, data = self._picture(number, index, *drawn.pixels.shape[1:3]), picture.data
        which: dict[str, Any] = {"seed": data.seed, "prompt_index": data.prompt_index}
        if data.error is not None:
            return RefusedEvent(**self._common(), **which, image_index=fields["image_index"], error=data.error)
        return CompletedEvent(
            **fields, **which,
            b64_json=data.b64_json or "", truncated=data.truncated, negative_truncated=data.negative_truncated,
            model=self._model, model_version=drawn.served.version, style=self._asked.style,
            ignored=list(self._asked.orders[number].ignored),
        )  # fmt: skip


def failure(error: ApiError) -> bytes:
    """The event that ends a stream which failed after it had begun; the openai client raises it as an APIError."""
    body = error.body
    if error.retry_after:
        body = body.model_copy(update={"retry_after": error.retry_after})
    return encoded(ErrorEvent(error=body))


def encoded(event: Event | ErrorEvent) -> bytes:
    """``event`` as a server-sent event that bears the name of its type."""
    return f"event: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()
