"""One image request: admitted, drawn, answered and written down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from serving.admission import Asked, admit
from serving.answers import ImagesResponse
from serving.auth import KeyRing
from serving.delivery import Delivery, Picture
from serving.door import TURNED_AWAY
from serving.drawing import CLIENT_CLOSED, Drawing
from serving.engine import Drawn, Engine
from serving.follower import Follower
from serving.images import ImageStore
from serving.limits import Limits
from serving.logbook import Logbook
from serving.metrics import Metrics
from serving.quota import Meter
from serving.routing import Router
from serving.running import RunningRequests
from serving.schemas import ApiError
from serving.streaming import Events, EventStream, failure
from serving.styles import StyleBook
from serving.watermark import Watermark

if TYPE_CHECKING:
    from serving.moderation import Moderator

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Service:
    """The parts that answer requests. Those that may be None are then left out."""

    limits: Limits
    engine: Engine
    follower: Follower
    logbook: Logbook
    metrics: Metrics
    keys: KeyRing | None  # None: no key is asked for
    timeout_s: float = 300.0
    styles: StyleBook | None = None  # adapters
    router: Router | None = None  # None: the engine's model answers everybody
    moderator: Moderator | None = None
    meter: Meter | None = None  # rates and quotas
    images: ImageStore | None = None  # pictures sent as links
    running: RunningRequests = field(default_factory=RunningRequests)
    watermark: Watermark | None = None


class Generation:
    """One image request, from its headers to its rows in the logbook."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service, self._request = service, request
        self._asked = Asked(request.scope["atelier.request_id"], service.limits.serve.max_prompt_chars)
        turned_away = request.headers.get(TURNED_AWAY, "")  # by Serve's proxy, see serving.door
        if turned_away.isdecimal() and len(turned_away) < 9:
            service.metrics.requests.labels("429").inc(int(turned_away))

    async def answer(self) -> Response:
        """The pictures as JSON, or a stream of events that ends with them.

        Raises:
            ApiError: any other answer; it is in the logbook already.
        """
        drawing: Drawing | None = None
        try:
            await admit(self._service, self._request, self._asked)
            drawing = Drawing(self._service, self._asked, self._request.receive)
            await drawing.begin()
            base = self._service.limits.serve.public_url.rstrip("/") or str(self._request.base_url).rstrip("/")
            delivery = Delivery(self._service, self._asked, lambda name: f"{base}/v1/images/{name}")
            if self._asked.body and self._asked.body.stream:
                events = Events(self._asked, drawing, delivery, self._service.limits.model)
                stream = EventStream(self._stream(events, drawing), self._headers())
                drawing = None  # the stream ends it
                return stream
            return await self._whole(drawing, delivery)
        except ClientDisconnect as error:
            self._failed(error, drawing)
            return Response(status_code=CLIENT_CLOSED)  # that nobody reads
        except asyncio.CancelledError as error:
            self._failed(error, drawing)
            raise
        except Exception as error:
            told = self._failed(error, drawing)
            raise told from (None if told is error else error)
        finally:
            if drawing is not None:
                drawing.end()

    async def _whole(self, drawing: Drawing, delivery: Delivery) -> Response:
        drawn = await drawing.all()
        pictures: list[Picture] = []
        for number, one in enumerate(drawn):
            pictures += await run_in_threadpool(delivery.pictures, number, one)
        self._service.logbook.append(*(picture.entry for picture in pictures))
        refused = [picture.data.error for picture in pictures if picture.data.error is not None]
        if len(refused) == len(pictures):
            error = refused[0]
            self._over(400, dict(enumerate(drawn)))
            raise ApiError(
                400, error.code or "", error.message, param=error.param, details=error.model_extra, recorded=True
            )
        answer = self._answer(drawn, pictures)
        self._over(200, dict(enumerate(drawn)))
        return Response(answer.model_dump_json(), media_type="application/json", headers=self._headers())

    def _answer(self, drawn: list[Drawn], pictures: list[Picture]) -> ImagesResponse:
        assert self._asked.body is not None, "it was drawn"
        height, width = drawn[0].pixels.shape[1:3]
        return ImagesResponse(
            created=int(time.time()),
            data=[picture.data for picture in pictures],
            model=self._service.limits.model,
            model_version=drawn[0].served.version,
            size=f"{width}x{height}",
            style=self._asked.style,
            output_format=self._asked.body.format,
            ignored=list(self._asked.orders[0].ignored),
        )

    async def _stream(self, events: Events, drawing: Drawing) -> AsyncGenerator[bytes, None]:
        written = 0

        def write() -> None:
            nonlocal written
            self._service.logbook.append(*(picture.entry for picture in events.sent[written:]))
            written = len(events.sent)

        try:
            async with aclosing(events.encoded()) as pieces:
                async for piece in pieces:
                    write()
                    yield piece
            self._over(200, events.drawn)
        except (ClientDisconnect, asyncio.CancelledError, GeneratorExit) as error:
            write()
            self._failed(error, drawing)
            if not isinstance(error, ClientDisconnect):
                raise
        except Exception as error:
            yield failure(self._failed(error, drawing))
        finally:
            drawing.end()

    def _failed(self, error: BaseException, drawing: Drawing | None) -> ApiError:
        """Write down that the request failed; the error that it is answered with."""
        if drawing is not None and isinstance(error, Exception):
            error = drawing.explained(error)
        if isinstance(error, ApiError):
            told = error
        elif isinstance(error, Exception) and not isinstance(error, ClientDisconnect):
            _log.error("Request %s failed", self._asked.id, exc_info=error)
            told = ApiError(500, "internal_error", "The server failed to draw this. The error is in its log.")
        else:
            told = ApiError(CLIENT_CLOSED, "client_closed", "The client went away.")
        if not told.recorded:
            self._service.logbook.append(self._asked.entry(told.status, told.code))
            self._over(told.status, {}, begun=drawing is not None and drawing.begun)
        return told

    def _over(self, status: int, drawn: dict[int, Drawn], begun: bool = True) -> None:
        """Count the outcome, once."""
        service, asked = self._service, self._asked
        service.metrics.requests.labels(str(status)).inc()
        if status == 200:
            service.metrics.seconds.observe(asked.seconds)
        elif service.meter and asked.charged and (status in (429, 500, 503) or not begun):
            # touches the disk, and nobody waits for it
            asyncio.get_running_loop().run_in_executor(None, service.meter.refund, asked.key, asked.charged)
        if service.router and asked.served:
            pairs = [(asked.orders[number], one) for number, one in drawn.items()] if status == 200 else []
            service.router.finished(asked.served, status, request_id=asked.id, drawings=pairs, seconds=asked.seconds)

    def _headers(self) -> dict[str, str]:
        return self._asked.standing.headers() if self._asked.standing else {}
