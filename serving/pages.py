"""What a browser is shown: the playground at ``/`` and the reference at ``/docs``. All of it is made here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from serving.admission import authorise, may_administer
from serving.generation import Service
from serving.reference import STYLESHEET, reference
from serving.routing import models

PLAYGROUND = Path(__file__).resolve().parent / "playground"


def add_pages(app: FastAPI, service: Service) -> None:
    """Add the pages, and what only the playground asks for; none of it is part of the API's description."""
    files = {"/": PLAYGROUND / "index.html", "/docs.css": STYLESHEET, "/favicon.svg": PLAYGROUND / "favicon.svg"}
    for file in sorted(PLAYGROUND.iterdir()):  # listed once: no path from a client is opened
        if file.suffix in (".js", ".css", ".svg"):
            files[f"/playground/{file.name}"] = file
    for route, file in files.items():
        app.add_api_route(route, _page(file), include_in_schema=False)

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(reference(app.openapi()))

    @app.get("/playground/models", include_in_schema=False)
    def versions(request: Request) -> dict[str, Any]:
        """The champion and what is tried beside it, with the gate's verdicts, and whether this key may choose."""
        key = authorise(service, request)
        return {
            "models": models(service.router, service.follower) if service.router else [],
            "compare": service.limits.serve.compare or may_administer(service, key),
        }

    @app.get("/playground/settings", include_in_schema=False)
    async def settings() -> dict[str, Any]:
        """What the page needs to know before anybody has given a key; nothing of it is secret."""
        serve, served = service.limits.serve, service.engine.served
        generator = served.generator if served else None
        sizes = service.limits.sizes(generator) if generator else []
        return {
            "model": service.limits.model,
            "model_version": served.version if served else None,
            "image_size": generator.image_size if generator else None,
            "sizes": [f"{width}x{height}" for width, height in sizes],
            "samplers": list(generator.samplers) if generator else [],
            "uses_steps": generator.uses_steps if generator else True,
            "uses_seed": generator.uses_seed if generator else True,
            "key_required": service.keys is not None,
            "examples": list(serve.examples),
            "default_steps": serve.default_steps,
            "max_steps": serve.max_steps,
            "default_guidance": serve.default_guidance,
            "max_images": serve.max_images,
            "max_prompt_chars": serve.max_prompt_chars,
        }


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def send() -> FileResponse:
        return FileResponse(file)

    return send
