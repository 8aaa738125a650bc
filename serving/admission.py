"""What a request must pass before it is drawn: key, rate, form, limits, room, style, moderation, quota. In this order.

Room comes before what touches the disk or reads the texts: a flood of requests must not take the processor from the
pictures that are drawn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from serving.auth import ADMIN, GENERATE, Key, require
from serving.door import PLACE
from serving.engine import NoModel, QueueFull, Served
from serving.limits import NO_STYLE, invalid
from serving.logbook import Entry
from serving.quota import Standing
from serving.routing import UnknownVersion
from serving.schemas import ApiError, ImageRequest, Lora, Order

if TYPE_CHECKING:
    from serving.generation import Service
    from serving.moderation import Verdict


@dataclass
class Asked:
    """What is known of a request: the more, the further it has come. ``started`` is on the monotonic clock."""

    id: str
    longest: int  # characters of a prompt that the logbook keeps
    started: float = field(default_factory=time.monotonic)
    key: Key | None = None
    standing: Standing | None = None  # what the key has left
    body: ImageRequest | None = None
    served: Served | None = None
    role: str | None = None  # of the version that answers, None: the champion
    orders: tuple[Order, ...] = ()
    style: str | None = None  # by name, adapter or template; known when it was found
    verdicts: list[Verdict] = field(default_factory=list)  # one an order, as far as they were checked
    charged: int = 0  # pictures taken from the key's quota

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.monotonic() - self.started

    @property
    def owner(self) -> str:
        """Whom the engine counts its work for."""
        return self.key.id if self.key else ""

    def entry(self, status: int, error: str | None, order: int | None = None, **more: Any) -> Entry:
        """A row for the logbook: of one order, or of the request as a whole."""
        prompts = self.body.prompts if self.body else []
        prompt = "\n".join(prompts) if order is None else prompts[order]
        made = self.orders[order or 0] if self.orders else None
        found = self.verdicts if order is None else self.verdicts[order : order + 1]
        verdict = next((verdict for verdict in reversed(found) if verdict.action != "allow"), None)
        known = {
            "seed": made.seeds[0] if made else None,
            "moderation_action": verdict.action if verdict else None,
            "moderation_categories": list(verdict.public()["categories"]) if verdict else None,
        }
        return Entry(
            request_id=self.id,
            status=status,
            error=error,
            seconds=self.seconds,
            key_id=self.key.id if self.key else None,
            private=self.key is not None and not self.key.log_prompts,
            user=self.body.end_user if self.body else None,
            prompt=_shortened(prompt, self.longest) if self.body else None,
            steps=made.steps if made else None,
            guidance_scale=made.guidance_scale if made else None,
            style=self.style,
            model_version=self.served.version if self.served else None,
            role=self.role,
            **(known | more),
        )


async def admit(service: Service, request: Request, asked: Asked) -> None:
    """Fill ``asked`` in; when it returns, its orders may be drawn and are paid for.

    Raises:
        ApiError: the answer to a request that is not to be drawn.
        ClientDisconnect: the client went away before it had sent everything.
    """
    asked.key = await run_in_threadpool(authorise, service, request)
    if service.meter:
        asked.standing = await run_in_threadpool(service.meter.admit, asked.key)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also keeps other websites' forms out
        raise ApiError(415, "unsupported_media_type", "Send the body as 'Content-Type: application/json'.")
    asked.body = body = service.limits.parse(await _read_body(request, service.limits.max_body))
    if body.response_format == "url" and service.images is None:
        raise invalid("response_format", "is 'url'; no links are given here")
    asked.served = served = _route(service, asked.key, body.version)
    asked.role = service.router.role(served) if service.router else None
    asked.orders = service.limits.orders(body, served.generator)
    try:
        service.engine.require_room()
    except QueueFull as full:
        raise queue_full(full) from full
    await run_in_threadpool(_examine, service, asked)


def authorise(service: Service, request: Request, right: str = GENERATE) -> Key | None:
    """The key of the request; None when the service asks for none.

    Raises:
        ApiError: 401 or 403; no key, a wrong one, or one without that right.
    """
    return require(service.keys, request.headers.get("authorization", ""), right)


def no_model() -> ApiError:
    """503 before the first release."""
    return ApiError(503, "no_model", "No model has been released yet. Try again when one has.", retry_after=10)


def queue_full(error: QueueFull) -> ApiError:
    """429 where as many wait as may."""
    message = f"Too many requests are waiting. Try again in {error.retry_after} s."
    told = {} if error.place_s is None else {PLACE: f"{error.place_s:.6f}"}
    return ApiError(429, "queue_full", message, retry_after=error.retry_after, headers=told)


def _route(service: Service, key: Key | None, version: str | None) -> Served:
    """The model that answers this key."""
    if version is not None and not service.limits.serve.compare and not may_administer(service, key):
        message = "'version' is for keys with the right 'admin', unless the server compares versions (serve.compare)."
        raise ApiError(403, "insufficient_permissions", message, param="version")
    try:
        if service.router:
            return service.router.route(key.id if key else None, version)
        if (served := service.engine.served) is None:
            raise NoModel
        if version not in (None, "champion", served.version):
            raise UnknownVersion(f"The version {version[:40]!r} cannot be asked for. Known: {served.version}.")
    except NoModel:
        raise no_model() from None
    except UnknownVersion as unknown:
        raise ApiError(400, "unknown_version", str(unknown), param="version") from None
    return served


def may_administer(service: Service, key: Key | None) -> bool:
    """Whether the key may do what concerns others; without keys everybody may, as only this machine gets in."""
    return service.keys is None or (key is not None and key.may(ADMIN))


def _examine(service: Service, asked: Asked) -> None:
    """Look the style up, hold the texts against the policy, and charge the key. Touches the disk."""
    body, served = asked.body, asked.served
    assert body is not None and served is not None, "they were read before"
    if body.style not in NO_STYLE:
        if body.style not in service.limits.serve.templates:
            style = _adapter(service, str(body.style), served)
            asked.orders = tuple(replace(order, style=style) for order in asked.orders)
        asked.style = body.style
    if service.moderator:
        for number, order in enumerate(asked.orders, 1):
            verdict = service.moderator.check_prompt(order.prompt)
            asked.verdicts.append(verdict)
            if verdict.action == "block":
                raise _refusal(service, order.prompt, verdict, number if len(asked.orders) > 1 else 0)
    if service.meter:
        pictures = sum(len(order.seeds) for order in asked.orders)
        service.meter.charge(asked.key, pictures)
        asked.charged = pictures


def _adapter(service: Service, name: str, served: Served) -> Lora:
    if service.styles is None:
        raise ApiError(400, "unknown_style", f"There is no style {name!r} here: leave 'style' out.", param="style")
    return service.styles.find(name, served)


def _refusal(service: Service, text: str, verdict: Verdict, number: int) -> ApiError:
    for category in verdict.categories:
        service.metrics.blocks.labels("prompt", category).inc()
    matches = list(dict.fromkeys(text[start:stop] for start, stop in verdict.spans))
    return ApiError(
        400,
        "content_policy_violation",
        f"Prompt {number}: {verdict.reason}" if number else verdict.reason,
        param="prompt",
        details={"categories": dict(verdict.categories), "matches": matches},
    )


def _shortened(text: str, longest: int) -> str:
    """Its beginning, up to a blank: half an address would not be known for what it is, and would be kept."""
    return text if len(text) <= longest else text[:longest].rpartition(" ")[0]


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
