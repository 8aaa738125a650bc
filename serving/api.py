"""The HTTP interface: routes, errors, headers. A plain ASGI app, which Ray Serve or any other server runs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth import Key, KeyRing
from serving.engine import Drawn, Engine, EngineClosed, NoModel, QueueFull, Served
from serving.follower import Follower
from serving.logbook import Entry, Logbook, image_stats
from serving.metrics import Metrics
from serving.provenance import encode_png
from serving.schemas import (
    ApiError,
    ErrorBody,
    ErrorResponse,
    ImageData,
    ImageRequest,
    ImagesResponse,
    Limits,
    Model,
    ModelList,
    Order,
)

PLAYGROUND = Path(__file__).resolve().parent / "playground"
CLIENT_CLOSED = 499  # in the logbook only: the client went away before the answer
_log = logging.getLogger("ray.serve")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


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


def build_api(service: Service) -> FastAPI:
    """The app for ``service``: the image API, health, metrics and the playground."""
    app = FastAPI(
        title="Atelier", docs_url=None, redoc_url=None, description="Text-to-image, in OpenAI's shape."
    )
    app.add_middleware(_Headers)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(StarletteHTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_unexpected)
    _add_images(app, service)
    _add_models(app, service)
    _add_health(app, service)
    _add_playground(app, service)
    return app


def _add_images(app: FastAPI, service: Service) -> None:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 415, 429, 500, 503)
    }
    schema = ImageRequest.model_json_schema()
    body = {"required": True, "content": {"application/json": {"schema": schema}}}

    @app.post(
        "/v1/images/generations",
        response_model=ImagesResponse,
        responses=errors,
        openapi_extra={"requestBody": body},
    )
    async def generate(request: Request) -> Response:
        """Draw pictures of a prompt."""
        return await _Generation(service, request).answer()


class _Generation:
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
            raise ApiError(
                500, "internal_error", "The server failed to draw this. The error is in its log."
            ) from error

    async def _generate(self) -> Response:
        service = self._service
        self._key = await run_in_threadpool(authorise, service, self._request)
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # also keeps other websites' forms out
            raise ApiError(
                415, "unsupported_media_type", "Send the body as 'Content-Type: application/json'."
            )
        self._body = service.limits.parse(await _read_body(self._request, service.limits.max_body))
        if (served := service.engine.served) is None:
            raise _no_model()
        self._served = served
        self._order = service.limits.order(self._body, served.generator.image_size)
        drawn = await self._draw(self._order, served)
        answer, entries = await run_in_threadpool(self._finish, self._body, self._order, drawn)
        service.logbook.append(*entries)
        service.metrics.requests.labels("200").inc()
        service.metrics.seconds.observe(time.monotonic() - self._started)
        return Response(answer, media_type="application/json")

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
            raise _no_model() from None
        except EngineClosed:
            raise ApiError(503, "shutting_down", "The server is being stopped.", retry_after=5) from None

    def _finish(self, body: ImageRequest, order: Order, drawn: Drawn) -> tuple[bytes, list[Entry]]:
        """The answer as JSON, and a logbook row for every picture in it."""
        model, version = self._service.limits.model, drawn.served.version
        data: list[ImageData] = []
        entries: list[Entry] = []
        for pixels, seed in zip(drawn.pixels, order.seeds, strict=True):
            png = encode_png(pixels, model=model, version=version, seed=seed, request_id=self._id)
            data.append(
                ImageData(b64_json=base64.b64encode(png).decode(), seed=seed, truncated=drawn.truncated)
            )
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
            created=int(time.time()), data=data, model=model, model_version=version, size=size
        )
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
        raise ApiError(
            401, "missing_api_key", "An API key is needed: send it as 'Authorization: Bearer KEY'."
        )
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


def _no_model() -> ApiError:
    return ApiError(
        503, "no_model", "No model has been released yet. Try again when one has.", retry_after=10
    )


def _add_models(app: FastAPI, service: Service) -> None:
    def model() -> Model:
        if (served := service.engine.served) is None:
            raise _no_model()
        size = served.generator.image_size
        return Model(
            id=service.limits.model,
            created=int(served.loaded_at),
            version=served.version,
            size=f"{size}x{size}",
        )

    @app.get("/v1/models")
    def models(request: Request) -> ModelList:
        """The models served: none before the first release."""
        authorise(service, request)
        return ModelList(data=[model()] if service.engine.served else [])

    @app.get("/v1/models/{name}")
    def one_model(name: str, request: Request) -> Model:
        """One model by its name."""
        authorise(service, request)
        if name != service.limits.model:
            raise ApiError(
                404, "model_not_found", f"The model {name[:100]!r} is not served here.", param="model"
            )
        return model()


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """200 while the process works, however busy; ``degraded``: something needs a look at the log."""
        state, served = service.follower.state, service.engine.served
        bad = state.registry_error or state.refused or service.logbook.error
        return {
            "status": "degraded" if bad else "ok",
            "model": service.limits.model,
            "model_version": served.version if served else None,
            "loading": state.loading,
            "registry": "unreachable" if state.registry_error else "ok",
            "refused_version": state.refused,
            "logbook": "failing" if service.logbook.error else "ok",
        }

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """200 when a model is loaded, also while the queue is full; else 503."""
        if (served := service.engine.served) is None:
            raise _no_model()
        return {"status": "ready", "model_version": served.version}

    @app.get("/version")
    async def version() -> dict[str, str | None]:
        """Which model is served: its version in the registry and the digest of its artifact."""
        served = service.engine.served
        return {
            "model": service.limits.model,
            "model_version": served.version if served else None,
            "digest": served.digest if served else None,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics of this replica."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_playground(app: FastAPI, service: Service) -> None:
    def page(name: str) -> Callable[[], Awaitable[FileResponse]]:
        async def send() -> FileResponse:
            return FileResponse(PLAYGROUND / name)

        return send

    for route, name in {
        "/": "index.html",
        "/playground/app.js": "app.js",
        "/playground/app.css": "app.css",
        "/favicon.svg": "favicon.svg",
    }.items():
        app.add_api_route(route, page(name), include_in_schema=False)

    @app.get("/playground/settings", include_in_schema=False)
    async def settings() -> dict[str, Any]:
        """What the page needs to know before anybody has given a key; nothing of it is secret."""
        serve, served = service.limits.serve, service.engine.served
        return {
            "model": service.limits.model,
            "model_version": served.version if served else None,
            "image_size": served.generator.image_size if served else None,
            "key_required": service.keys is not None,
            "default_steps": serve.default_steps,
            "max_steps": serve.max_steps,
            "default_guidance": serve.default_guidance,
            "max_images": serve.max_images,
            "max_prompt_chars": serve.max_prompt_chars,
        }


def _error(error: ApiError) -> JSONResponse:
    body = ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(ErrorResponse(error=body).model_dump(), error.status, headers=headers)


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(error)


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException | StarletteHTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = {
        404: f"There is nothing at {request.url.path[:200]}.",
        405: f"{request.url.path[:200]} does not answer {request.method}.",
    }.get(error.status_code, str(error.detail))
    response = _error(ApiError(error.status_code, code, message))
    response.headers.update(dict(error.headers or {}))
    return response


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    _log.error("Request %s failed", request.scope.get("atelier.request_id"), exc_info=error)
    return _error(ApiError(500, "internal_error", "The server failed to answer. The error is in its log."))


class _Headers:
    """Gives every request an id and every answer the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = MutableHeaders(scope=scope).get("x-request-id")
        # Ray's proxy puts the id on the request and on the answer; where nobody did, both are done here
        request_id = re.sub(r"[^\w.-]", "", given or "", flags=re.ASCII)[:64] or uuid.uuid4().hex
        scope["atelier.request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if given is None:
                    headers["X-Request-ID"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_headers)
