"""What crosses the wire, in OpenAI's shape: requests, responses, errors, and the limits of a request."""

from __future__ import annotations

import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.contracts.recipe import Serve

MAX_SEED = 2**53 - 1  # the largest integer that every JSON reader keeps exactly
MAX_GUIDANCE = 30.0
_BODY_BASE = 16 * 1024  # bytes; room for every field but the prompts
_BODY_PER_CHAR = 12  # bytes; one character as two escaped surrogates: \ud83d\ude00


class ApiError(Exception):
    """An answer other than a picture. ``retry_after`` is in seconds; ``code`` is stable, for programs.

    Args:
        status: HTTP status.
        code: machine-readable reason, e.g. ``"queue_full"``.
        message: for people; says what was found and what to do.
        param: the request field concerned.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after = param, retry_after
        super().__init__(message)

    @property
    def type(self) -> str:
        """OpenAI's coarse class of the error."""
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"


class ErrorBody(BaseModel):
    """The inside of an error answer."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """``{"error": {...}}``, for every status of 400 and above."""

    error: ErrorBody


class ImageRequest(BaseModel):
    """Body of ``POST /v1/images/generations``. Unknown fields are refused by name.

    The fields after ``user`` are additions to OpenAI's; those of OpenAI's that have one meaning here
    (``quality``, ``background`` …) are accepted with that meaning only.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, description="What the picture shall show.")]
    model: str | None = Field(default=None, description="Name of the served model; the default is the only one.")
    n: int | None = Field(default=1, ge=1, description="Number of pictures.")
    size: str | None = Field(default="auto", description='"auto", or the model\'s own size as "WIDTHxHEIGHT".')
    response_format: Literal["b64_json", "url"] | None = Field(default="b64_json", description="b64_json only.")
    user: Annotated[str, Field(max_length=256)] | None = None
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Of the first picture; the next ones count up. Random if absent.",
    )
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = Field(default=None, ge=1.0, le=MAX_GUIDANCE)
    negative_prompt: str | None = None
    quality: Literal["auto", "standard"] | None = None
    style: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description='Name of a style of GET /v1/styles; "natural" is none of them.'
    )
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto"] | None = None
    output_format: Literal["png"] | None = None
    output_compression: Literal[100] | None = None
    stream: Literal[False] | None = None
    partial_images: Literal[0] | None = None


class ImageData(BaseModel):
    """One picture: PNG in base64, the seed that makes it again, and whether the prompts were cut."""

    b64_json: str
    revised_prompt: None = None
    seed: int
    truncated: bool = Field(description="The prompt is longer than the text encoder reads; its end had no effect.")
    negative_truncated: bool = Field(default=False, description="The same of the negative prompt.")


class ImagesResponse(BaseModel):
    """Answer of ``POST /v1/images/generations``. ``created`` is in seconds since 1970."""

    created: int
    data: list[ImageData]
    model: str
    model_version: str
    size: str
    style: str | None = None
    output_format: Literal["png"] = "png"
    ignored: list[str] = Field(
        default=[], description="Fields of the request that have no effect on a model of this family."
    )


class StyleInfo(BaseModel):
    """One style, as ``GET /v1/styles`` lists it."""

    id: str = Field(description="What the request field 'style' asks for it by.")
    object: Literal["style"] = "style"
    caption: str = Field(description="What its subject was called in training; empty: captions of their own.")
    model_version: str = Field(description="That it was made for; empty where that was never registered.")
    available: bool = Field(description="It fits the version that is served.")


class StyleList(BaseModel):
    """Answer of ``GET /v1/styles``."""

    object: Literal["list"] = "list"
    data: list[StyleInfo]


class Model(BaseModel):
    """One served model, as ``GET /v1/models`` lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "atelier"
    version: str
    size: str
    family: str = Field(description="diffusion, gan, vae or cnn.")
    uses_steps: bool = Field(description="Steps, guidance scale and negative prompt have an effect.")
    uses_seed: bool = Field(description="False: one prompt gives one picture, whatever the seed.")


class ModelList(BaseModel):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


@dataclass(frozen=True)
class Lora:
    """The adapter of a style: its name, the digest of its artifact, and the local folder of its weights."""

    name: str
    digest: str
    folder: Path


@dataclass(frozen=True)
class Order:
    """A request within the limits, defaults filled in: what the engine draws."""

    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]  # one a picture
    steps: int
    guidance_scale: float
    ignored: tuple[str, ...] = ()  # fields that were given and that the model has no use for
    style: Lora | None = None


@dataclass(frozen=True)
class Limits:
    """The recipe's ``serve`` section, applied to requests for the model called ``model``."""

    serve: Serve
    model: str

    @property
    def max_body(self) -> int:
        """Largest request body, in bytes: both prompts at full length, every character escaped."""
        return _BODY_BASE + 2 * _BODY_PER_CHAR * self.serve.max_prompt_chars

    def parse(self, body: bytes) -> ImageRequest:
        """The request in ``body``.

        Raises:
            ApiError: 400; not JSON, not UTF-8, an unknown field, a wrong type or value.
        """
        try:
            return ImageRequest.model_validate_json(body)
        except ValidationError as error:
            raise _explained(error.errors(include_url=False)[0]) from None

    def order(self, request: ImageRequest, image_size: int, uses_steps: bool = True, uses_seed: bool = True) -> Order:
        """The order for a model that draws ``image_size`` x ``image_size`` pixels.

        A model of one pass has one step and no guidance, so that all its orders can be drawn together.

        Args:
            uses_steps, uses_seed: see :class:`components.models.families.ImageGenerator`.

        Raises:
            ApiError: 400 or 404; a value outside the recipe's limits, or a blocked word.
        """
        serve = self.serve
        if request.model not in (None, self.model):
            raise ApiError(
                404,
                "model_not_found",
                f"The model {request.model!r} is not served here; {self.model!r} is.",
                param="model",
            )
        for param, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
            if len(text) > serve.max_prompt_chars:
                raise _invalid(param, f"has {len(text)} characters; at most {serve.max_prompt_chars} are read")
        if not request.prompt.strip():
            raise _invalid("prompt", "is blank; say what the picture shall show")
        if (n := request.n or 1) > serve.max_images:
            raise _invalid("n", f"is {n}; one request draws at most {serve.max_images} pictures")
        if (steps := request.num_inference_steps or serve.default_steps) > serve.max_steps:
            raise _invalid("num_inference_steps", f"is {steps}; at most {serve.max_steps} are allowed")
        if (size := request.size or "auto") not in ("auto", own := f"{image_size}x{image_size}"):
            raise _invalid("size", f"is {size!r}; this model draws {own!r}: send that or 'auto'")
        if request.response_format == "url":
            raise _invalid("response_format", "is 'url'; pictures are only sent inside the answer: use 'b64_json'")
        if word := self._blocked(request.prompt):
            raise ApiError(
                400,
                "content_policy_violation",
                f"The prompt holds a word that is not allowed here: {word!r}.",
                param="prompt",
            )
        first = secrets.randbelow(2**31) if request.seed is None else request.seed
        return Order(
            prompt=request.prompt,
            negative_prompt=(request.negative_prompt or None) if uses_steps else None,
            seeds=tuple((first + i) % (MAX_SEED + 1) for i in range(n)),
            steps=steps if uses_steps else 1,
            guidance_scale=float(request.guidance_scale or serve.default_guidance) if uses_steps else 1.0,
            ignored=_ignored(request, uses_steps, uses_seed),
        )

    def _blocked(self, prompt: str) -> str | None:
        words = set("".join(c if c.isalnum() else " " for c in _folded(prompt)).split())
        return next((word for word in self.serve.blocked_words if _folded(word) in words), None)


def _ignored(request: ImageRequest, uses_steps: bool, uses_seed: bool) -> tuple[str, ...]:
    """The fields that were given and that a model of this kind has no use for."""
    unused: tuple[str, ...] = () if uses_steps else ("num_inference_steps", "guidance_scale", "negative_prompt")
    unused += () if uses_seed else ("seed",)
    return tuple(name for name in unused if getattr(request, name) is not None)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _invalid(param: str, found: str) -> ApiError:
    return ApiError(400, "invalid_value", f"'{param}' {found}.", param=param)


def _explained(error: Any) -> ApiError:
    param = ".".join(str(part) for part in error["loc"]) or None
    if error["type"] == "json_invalid":
        return ApiError(400, "invalid_json", f"The body is not valid JSON in UTF-8: {error['ctx']['error']}.")
    if param is None:
        return ApiError(400, "invalid_json", "The body must be a JSON object with at least a 'prompt'.")
    if error["type"] == "extra_forbidden":
        known = ", ".join(ImageRequest.model_fields)
        return ApiError(
            400, "unknown_parameter", f"Unknown parameter {param[:100]!r}. Known: {known}.", param=param[:100]
        )
    if error["type"] == "missing":
        return ApiError(400, "missing_required_parameter", f"'{param}' is required.", param=param)
    return ApiError(400, "invalid_value", f"'{param}': {error['msg'][:300]}.", param=param)
