"""From drawn pixels to what is sent: checked, marked, encoded, and kept where a link was asked for."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.contracts.errors import AtelierError
from serving.admission import Asked
from serving.answers import ImageData
from serving.engine import Drawn
from serving.logbook import Entry, image_stats
from serving.provenance import encode
from serving.schemas import ApiError

if TYPE_CHECKING:
    from serving.generation import Service
    from serving.moderation import Verdict

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Picture:
    """One picture as it is answered, and its row in the logbook."""

    data: ImageData
    entry: Entry


class Delivery:
    """Makes the pictures of one request ready to be sent. Its methods work for a while: call them on a thread.

    Args:
        link: the address of a picture by its name in the store.
    """

    def __init__(self, service: Service, asked: Asked, link: Callable[[str], str]) -> None:
        assert asked.body is not None, "the request was read"
        self._service, self._asked, self._body, self._link = service, asked, asked.body, link

    def pictures(self, number: int, drawn: Drawn) -> list[Picture]:
        """Those of the order ``number``. One that the policy withholds has an error instead of the picture.

        Raises:
            ApiError: 503; a link was asked for, and the store takes no picture.
        """
        seeds = self._asked.orders[number].seeds
        return [
            self._withheld(number, seed, drawn, verdict) if verdict and verdict.action == "block"
            else self._whole(number, seed, drawn, pixels, verdict)
            for pixels, seed, verdict in zip(drawn.pixels, seeds, self._verdicts(drawn.pixels), strict=True)
        ]  # fmt: skip

    def preview(self, number: int, image: int, pixels: NDArray[np.uint8]) -> str | None:
        """A preview of picture ``image`` of the order ``number``, in base64; None when the policy withholds it."""
        verdict = self._verdicts(pixels[None])[0]
        if verdict and verdict.action == "block":
            return None
        return base64.b64encode(self._encoded(self._asked.orders[number].seeds[image], pixels)).decode()

    def _verdicts(self, pixels: NDArray[np.uint8]) -> list[Verdict | None]:
        if self._service.moderator is None:
            return [None] * len(pixels)
        return list(self._service.moderator.check_images(pixels))

    def _whole(
        self, number: int, seed: int, drawn: Drawn, pixels: NDArray[np.uint8], verdict: Verdict | None
    ) -> Picture:
        file = self._encoded(seed, pixels)
        if self._body.response_format == "url":
            shown = {"url": self._link(self._kept(file))}
        else:
            shown = {"b64_json": base64.b64encode(file).decode()}
        entry = self._entry(
            200, None, number, seed, drawn, verdict,
            image_sha256=hashlib.sha256(file).hexdigest(), image_stats=image_stats(pixels),
        )  # fmt: skip
        return Picture(self._data(number, seed, drawn, **shown), entry)

    def _withheld(self, number: int, seed: int, drawn: Drawn, verdict: Verdict) -> Picture:
        for category in verdict.categories:
            self._service.metrics.blocks.labels("image", category).inc()
        error = ApiError(
            400, "moderation_blocked", verdict.reason, param="prompt", details={"categories": dict(verdict.categories)}
        )
        entry = self._entry(400, error.code, number, seed, drawn, verdict)
        return Picture(self._data(number, seed, drawn, error=error.body), entry)

    def _data(self, number: int, seed: int, drawn: Drawn, **more: Any) -> ImageData:
        return ImageData(
            seed=seed, prompt_index=number, truncated=drawn.truncated, negative_truncated=drawn.negative_truncated,
            **more,
        )  # fmt: skip

    def _entry(
        self, status: int, error: str | None, number: int, seed: int, drawn: Drawn, verdict: Verdict | None, **more: Any
    ) -> Entry:
        if verdict and verdict.action != "allow":  # says more than what was found in the prompt
            more["moderation_action"] = verdict.action
            more["moderation_categories"] = list(verdict.public()["categories"])
        return self._asked.entry(status, error, number, seed=seed, truncated=drawn.truncated, **more)

    def _encoded(self, seed: int, pixels: NDArray[np.uint8]) -> bytes:
        served = self._asked.served
        assert served is not None, "it has drawn this"
        if self._service.watermark:
            pixels = self._service.watermark.embed(pixels, self._asked.id)
        return encode(
            pixels, self._body.format, self._body.quality_percent, model=self._service.limits.model,
            version=served.version, seed=seed, request_id=self._asked.id, style=self._asked.style,
        )  # fmt: skip

    def _kept(self, file: bytes) -> str:
        assert self._service.images is not None, "checked before it was drawn"
        try:
            return self._service.images.put(file, self._body.format)
        except (AtelierError, OSError) as error:
            _log.error("A picture cannot be kept for its link: %s", error)
            message = "The picture was drawn and cannot be kept for a link now. Ask for 'b64_json'."
            raise ApiError(503, "links_unavailable", message, param="response_format", retry_after=30) from error
