"""The HTTP interface: routes, errors, headers. A plain ASGI app, which Ray Serve or any other server runs."""

from __future__ import annotations

import logging
import re
import uuid
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.administration import add_administration
from serving.admission import authorise, may_administer, no_model
from serving.answers import Cancelled, ErrorResponse, ImagesResponse, Model, ModelList, StyleInfo, StyleList
from serving.engine import Served
from serving.generation import Generation, Service
from serving.health import add_health
from serving.images import media_type
from serving.openapi import STREAMED, describe, errors
from serving.pages import add_pages
from serving.schemas import ApiError

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
    """The app for ``service``: the image API, health, metrics, its description and the playground."""
    app = FastAPI(title="Atelier", docs_url=None, redoc_url=None, description="Text-to-image, in OpenAI's shape.")
    app.add_middleware(_Headers)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(StarletteHTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(Exception, _answer_unexpected)
    _add_images(app, service)
    _add_models(app, service)
    add_administration(app, service)
    add_health(app, service)
    add_pages(app, service)
    app.openapi = lambda: describe(app, service)  # type: ignore[method-assign]
    return app


def _add_images(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/images/generations",
        response_model=ImagesResponse,
        responses={200: STREAMED, **errors(400, 401, 403, 404, 413, 415, 429, 499, 500, 503)},
    )
    async def generate(request: Request) -> Response:
        """Draw pictures of a prompt."""
        return await Generation(service, request).answer()

    @app.get(
        "/v1/images/{name}",
        response_class=Response,
        responses={
            200: {
                "description": "The picture.",
                "content": {f"image/{kind}": {"schema": {"type": "string"}} for kind in ("png", "jpeg", "webp")},
            },
            **errors(404, 405, 500),
        },
    )
    def image(name: Annotated[str, Path(description="The end of a picture's url.")]) -> Response:
        """A picture that was asked for with response_format 'url'. Its address is the right to it: no key is needed."""
        if name == "generations":  # the address of the operation above, asked with the wrong method
            raise HTTPException(405, headers={"Allow": "POST"})
        data = service.images.get(name) if service.images else None
        if data is None or service.images is None:
            raise ApiError(404, "image_not_found", "There is no such picture here, or its time is over.")
        return Response(
            data,
            media_type=media_type(name),
            headers={
                "Cache-Control": f"private, max-age={int(service.images.keep_s)}, immutable",
                "Cross-Origin-Resource-Policy": "cross-origin",  # the page that shows it is somebody else's
                "Content-Disposition": f'inline; filename="atelier-{name[:8]}.{name.rpartition(".")[2]}"',
            },
        )

    @app.delete("/v1/requests/{request_id}", responses=errors(401, 403, 404, 500))
    def cancel(
        request: Request, request_id: Annotated[str, Path(description="X-Request-ID of the request under way.")]
    ) -> Cancelled:
        """Cancel a request that was asked with the same key; with the right 'admin' any request."""
        key = authorise(service, request)
        anybodys = may_administer(service, key)
        if not service.running.cancel(cleaned(request_id), key.id if key else None, anybodys=anybodys):
            raise ApiError(404, "request_not_found", "No such request of this key is under way.")
        return Cancelled(id=cleaned(request_id))


def _add_models(app: FastAPI, service: Service) -> None:
    limits = service.limits

    def model(served: Served) -> Model:
        generator = served.generator
        sizes = [f"{width}x{height}" for width, height in limits.sizes(generator)]
        return Model(
            id=limits.model,
            created=int(served.loaded_at),
            version=served.version,
            size=sizes[0],
            sizes=sizes,
            samplers=list(generator.samplers),
            family=generator.family,
            uses_steps=generator.uses_steps,
            uses_seed=generator.uses_seed,
        )

    @app.get("/v1/models", responses=errors(401, 403, 500))
    def models(request: Request) -> ModelList:
        """The models served: none before the first release."""
        authorise(service, request)
        served = service.engine.served
        return ModelList(data=[model(served)] if served else [])

    @app.get("/v1/styles", responses=errors(401, 403, 500))
    def styles(request: Request) -> StyleList:
        """Styles to ask for: templates, and adapters that were trained for this model."""
        authorise(service, request)
        served, templates = service.engine.served, limits.serve.templates
        known = service.styles.listing(served) if service.styles and served else []
        listed = [style for style in known if style.id not in templates]  # whose name a template has taken
        words = [
            StyleInfo(
                id=name, kind="template", caption=template.prompt, model_version="", available=True,
                palette=list(template.palette),
            )
            for name, template in templates.items()
        ]  # fmt: skip
        return StyleList(data=sorted([*listed, *words], key=lambda style: style.id))

    @app.get("/v1/models/{name}", responses=errors(401, 403, 404, 500, 503))
    def one_model(name: str, request: Request) -> Model:
        """One model by its name."""
        authorise(service, request)
        if name != limits.model:
            raise ApiError(404, "model_not_found", f"The model {name[:100]!r} is not served here.", param="model")
        if (served := service.engine.served) is None:
            raise no_model()
        return model(served)


def _error(error: ApiError) -> JSONResponse:
    headers = dict(error.headers)
    if error.retry_after:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(ErrorResponse(error=error.body).model_dump(), error.status, headers=headers)


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


async def _answer_invalid(_: Request, error: Exception) -> Response:
    """A parameter of the path or the query; bodies are read by :meth:`serving.limits.Limits.parse`."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = dict(error.errors()[0])
    param = str(first["loc"][-1])
    return _error(ApiError(400, "invalid_value", f"'{param}': {str(first['msg'])[:300]}.", param=param))


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    _log.error("Request %s failed", request.scope.get("atelier.request_id"), exc_info=error)
    return _error(ApiError(500, "internal_error", "The server failed to answer. The error is in its log."))


def cleaned(request_id: str) -> str:
    """What is kept of an id that a client gave: letters, digits and ``_.-``, 64 at most."""
    return re.sub(r"[^\w.-]", "", request_id, flags=re.ASCII)[:64]


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
        request_id = cleaned(given or "") or uuid.uuid4().hex
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
