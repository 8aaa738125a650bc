"""The HTTP interface: routes, errors, headers. A plain ASGI app, which Ray Serve or any other server runs."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.generation import Generation, Service, authorise, no_model
from serving.schemas import (
    ApiError,
    ErrorBody,
    ErrorResponse,
    ImageRequest,
    ImagesResponse,
    Model,
    ModelList,
    StyleList,
)

PLAYGROUND = Path(__file__).resolve().parent / "playground"
_log = logging.getLogger("ray.serve")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def build_api(service: Service) -> FastAPI:
    """The app for ``service``: the image API, health, metrics and the playground."""
    app = FastAPI(title="Atelier", docs_url=None, redoc_url=None, description="Text-to-image, in OpenAI's shape.")
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
        return await Generation(service, request).answer()


def _add_models(app: FastAPI, service: Service) -> None:
    def model() -> Model:
        if (served := service.engine.served) is None:
            raise no_model()
        generator = served.generator
        size = generator.image_size
        return Model(
            id=service.limits.model,
            created=int(served.loaded_at),
            version=served.version,
            size=f"{size}x{size}",
            family=generator.family,
            uses_steps=generator.uses_steps,
            uses_seed=generator.uses_seed,
        )

    @app.get("/v1/models")
    def models(request: Request) -> ModelList:
        """The models served: none before the first release."""
        authorise(service, request)
        return ModelList(data=[model()] if service.engine.served else [])

    @app.get("/v1/styles")
    def styles(request: Request) -> StyleList:
        """The styles that were trained for this model; those that are not available fit another version of it."""
        authorise(service, request)
        served = service.engine.served
        return StyleList(data=service.styles.listing(served) if service.styles and served else [])

    @app.get("/v1/models/{name}")
    def one_model(name: str, request: Request) -> Model:
        """One model by its name."""
        authorise(service, request)
        if name != service.limits.model:
            raise ApiError(404, "model_not_found", f"The model {name[:100]!r} is not served here.", param="model")
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
            raise no_model()
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
            "uses_steps": served.generator.uses_steps if served else True,
            "uses_seed": served.generator.uses_seed if served else True,
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
