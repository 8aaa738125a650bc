"""One image request: checked, drawn, answered and written down."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from serving.auth import Key, KeyRing
from serving.engine import Drawn, Engine, EngineClosed, NoModel, QueueFull, Served
from serving.follower import Follower
from serving.logbook import Entry, Logbook, image_stats
from serving.metrics import Metrics
from serving.provenance import encode_png
from serving.schemas import ApiError, ImageData, ImageRequest, ImagesResponse, Limits, Lora, Order
from serving.styles import StyleBook

CLIENT_CLOSED = 499  # in the logbook only: the client went away before the answer
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Service:
    """The parts that answer requests. ``keys`` is None when no key is asked for."""

    limits: Limits
    engine: Engine
    follower: Follower
    logbook: Logbook
    metrics: Metrics
    keys: KeyRing | None
    timeout_s: float = 300.0
    styles: StyleBook | None = None  # None: the only style is the model's own


class Generation:
    """One image request, from its headers to its rows in the logbook."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service, self._request = service, request
        self._id: str = request.scope["atelier.request_id"]
        self._started = time.monotonic()
        self._key: Key | None = None
        self._body: ImageRequest | None = None
        self._order: Order | None = None
        self._served: Served | None = None

    async def answer(self) -> Response:
        """The pictures as JSON.

        Raises:
            ApiError: any other answer; it is in the logbook already.
        """
        try:
            return await self._generate()
        except ApiError as error:
            self._record(error.status, error.code)
            raise
        except (asyncio.CancelledError, ClientDisconnect):
            self._record(CLIENT_CLOSED, "client_closed")
            raise
        except Exception as error:
            _log.exception("Request %s failed", self._id)
            self._record(500, "internal_error")
            raise ApiError(500, "internal_error", "The server failed to draw this. The error is in its log.") from error

    async def _generate(self) -> Response:
        service = self._service
        self._key = await run_in_threadpool(authorise, service, self._request)
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # also keeps other websites' forms out
            raise ApiError(415, "unsupported_media_type", "Send the body as 'Content-Type: application/json'.")
        self._body = service.limits.parse(await _read_body(self._request, service.limits.max_body))
        if (served := service.engine.served) is None:
            raise no_model()
        self._served = served
        drawer = served.generator
        self._order = service.limits.order(self._body, drawer.image_size, drawer.uses_steps, drawer.uses_seed)
        if self._body.style not in (None, "natural"):
            style = await run_in_threadpool(self._style, self._body.style, served)
            self._order = replace(self._order, style=style)
        drawn = await self._draw(self._order, served)
        answer, entries = await run_in_threadpool(self._finish, self._body, self._order, drawn)
        service.logbook.append(*entries)
        service.metrics.requests.labels("200").inc()
        service.metrics.seconds.observe(time.monotonic() - self._started)
        return Response(answer, media_type="application/json")

    def _style(self, name: str, served: Served) -> Lora:
        if self._service.styles is None:
            raise ApiError(400, "unknown_style", "No styles are served here: leave 'style' out.", param="style")
        return self._service.styles.find(name, served)

    async def _draw(self, order: Order, served: Served) -> Drawn:
        try:
            future = self._service.engine.submit(order, served)
            # cancelled here (the client left, or the time is over), the future is too: the engine skips it
            return await asyncio.wait_for(asyncio.wrap_future(future), self._service.timeout_s)
        except QueueFull as full:
            raise ApiError(
                429,
                "queue_full",
                f"Too many requests are waiting. Try again in {full.retry_after} s.",
                retry_after=full.retry_after,
            ) from None
        except TimeoutError:
            wait = self._service.engine.wait_estimate()
            raise ApiError(
                503,
                "timeout",
                f"The picture was not ready after {self._service.timeout_s:.0f} s.",
                retry_after=wait,
            ) from None
        except NoModel:
            raise no_model() from None
        except EngineClosed:
            raise ApiError(503, "shutting_down", "The server is being stopped.", retry_after=5) from None

    def _finish(self, body: ImageRequest, order: Order, drawn: Drawn) -> tuple[bytes, list[Entry]]:
        """The answer as JSON, and a logbook row for every picture in it."""
        model, version = self._service.limits.model, drawn.served.version
        style = order.style.name if order.style else None
        data: list[ImageData] = []
        entries: list[Entry] = []
        for pixels, seed in zip(drawn.pixels, order.seeds, strict=True):
            png = encode_png(pixels, model=model, version=version, seed=seed, request_id=self._id, style=style)
            data.append(
                ImageData(
                    b64_json=base64.b64encode(png).decode(), seed=seed, truncated=drawn.truncated,
                    negative_truncated=drawn.negative_truncated,
                )
            )  # fmt: skip
            entries.append(
                self._entry(
                    200,
                    None,
                    seed=seed,
                    truncated=drawn.truncated,
                    image_sha256=hashlib.sha256(png).hexdigest(),
                    image_stats=image_stats(pixels),
                )
            )
        size = f"{drawn.pixels.shape[2]}x{drawn.pixels.shape[1]}"
        answer = ImagesResponse(
            created=int(time.time()), data=data, model=model, model_version=version, size=size,
            ignored=list(order.ignored), style=style,
        )  # fmt: skip
        return answer.model_dump_json().encode(), entries

    def _entry(self, status: int, error: str | None, **more: Any) -> Entry:
        order, body = self._order, self._body
        longest = self._service.limits.serve.max_prompt_chars
        return Entry(
            request_id=self._id,
            status=status,
            error=error,
            seconds=time.monotonic() - self._started,
            key_id=self._key.id if self._key else None,
            prompt=body.prompt[:longest] if body else None,
            steps=order.steps if order else None,
            guidance_scale=order.guidance_scale if order else None,
            style=order.style.name if order and order.style else None,
            model_version=self._served.version if self._served else None,
            **({"seed": order.seeds[0] if order else None} | more),
        )

    def _record(self, status: int, error: str) -> None:
        self._service.logbook.append(self._entry(status, error))
        self._service.metrics.requests.labels(str(status)).inc()


def authorise(service: Service, request: Request) -> Key | None:
    """The key of the request; None when the service asks for none.

    Raises:
        ApiError: 401; no key or a wrong one.
    """
    if service.keys is None:
        return None
    scheme, _, presented = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not presented.strip():
        raise ApiError(401, "missing_api_key", "An API key is needed: send it as 'Authorization: Bearer KEY'.")
    if key := service.keys.verify(presented.strip()):
        return key
    raise ApiError(401, "invalid_api_key", "This API key is not known here. Check it, or ask for a new one.")


async def _read_body(request: Request, most: int) -> bytes:
    too_large = ApiError(413, "body_too_large", f"The body is larger than {most} bytes.")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


def no_model() -> ApiError:
    """503 before the first release."""
    return ApiError(503, "no_model", "No model has been released yet. Try again when one has.", retry_after=10)
