"""The description of the API at ``/openapi.json`` (OpenAPI 3.1), with the limits of the recipe in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.answers import CompletedEvent, ErrorEvent, ErrorResponse, PartialImageEvent, ProgressEvent, RefusedEvent
from serving.schemas import ImageRequest

if TYPE_CHECKING:
    from serving.generation import Service

Responses = dict[int | str, dict[str, Any]]
_EVENTS = (ProgressEvent, PartialImageEvent, CompletedEvent, RefusedEvent, ErrorEvent)
_REFERENCE = "#/components/schemas/{model}"
_TITLES = {
    400: "The request cannot be answered as it is; moderation refuses with this, too.",
    401: "No API key, or one that is not known.",
    403: "The key has not the right that this needs.",
    404: "There is no such thing.",
    405: "This address is asked with another method.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too much at once, or today. Retry-After says when to try again.",
    499: "The request was cancelled.",
    500: "The server failed. The reason is in its log.",
    503: "The server cannot answer now. Retry-After says when to try again.",
}
_EVENT = {  # one event of a stream, as OpenAPI describes them since 3.2
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": [event.model_fields["type"].default for event in _EVENTS]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"oneOf": [{"$ref": _REFERENCE.format(model=event.__name__)} for event in _EVENTS]},
        },
    },
}
STREAMED: dict[str, Any] = {
    "description": 'The pictures; with "stream": true, events: '
    + ", ".join(f"{event.model_fields['type'].default} ({event.__name__})" for event in _EVENTS)
    + ".",
    "content": {"text/event-stream": {"itemSchema": _EVENT}},
}


def errors(*statuses: int) -> Responses:
    """The answers of a route that are errors in OpenAI's shape."""
    found: Responses = {}
    for status in statuses:
        found[status] = {"model": ErrorResponse, "description": _TITLES[status]}
        if status in (429, 503):
            about = "Seconds after which another try is worth it, predicted from the queue."
            found[status]["headers"] = {"Retry-After": {"description": about, "schema": {"type": "integer"}}}
    return found


def describe(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI document; made once for each app."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # of FastAPI: a wrong parameter is a 400 here
        schemas.pop(name, None)
    for model in (ImageRequest, *_EVENTS):
        schemas[model.__name__] = model.model_json_schema(ref_template=_REFERENCE)
        schemas.update(schemas[model.__name__].pop("$defs", {}))
    _limit(schemas["ImageRequest"]["properties"], service)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if "{" in path:  # what fits no route is not found
                operation["responses"].setdefault("404", _not_found())
            if service.keys is not None and path.startswith("/v1/") and path != "/v1/images/{name}":
                operation["security"] = [{"key": []}]
    body = {"$ref": _REFERENCE.format(model="ImageRequest")}
    document["paths"]["/v1/images/generations"]["post"]["requestBody"] = {
        "required": True, "content": {"application/json": {"schema": body}},
    }  # fmt: skip
    if service.keys is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    app.openapi_schema = document
    return document


def _not_found() -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(model="ErrorResponse")}
    return {"description": _TITLES[404], "content": {"application/json": {"schema": schema}}}


def _limit(properties: dict[str, Any], service: Service) -> None:
    """Write the recipe's limits and defaults into the description of the request."""
    serve = service.limits.serve
    properties["num_inference_steps"]["default"] = serve.default_steps
    properties["guidance_scale"]["default"] = serve.default_guidance
    limits = {
        "n": {"integer": {"maximum": serve.max_images}},
        "num_inference_steps": {"integer": {"maximum": serve.max_steps}},
        "negative_prompt": {"string": {"maxLength": serve.max_prompt_chars}},
        "prompt": {"string": {"maxLength": serve.max_prompt_chars}, "array": {"maxItems": serve.max_images}},
    }
    for name, kinds in limits.items():
        for kind in properties[name]["anyOf"]:
            kind.update(kinds.get(kind["type"], {}))
            if kind["type"] == "array":
                kind["items"].update(kinds["string"])
