"""What crosses the wire towards the server, in OpenAI's shape: the request, and the errors that answer a wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.contracts.recipe import Serve
from serving.answers import ErrorBody, Format

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
        details: further fields of the error's body, as JSON values.
        recorded: what it answers is in the logbook already.
        headers: of the answer, besides those that the status asks for.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        details: dict[str, Any] | None = None,
        recorded: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after, self.details, self.recorded = param, retry_after, details or {}, recorded
        self.headers = headers or {}
        super().__init__(message)

    @property
    def type(self) -> str:
        """OpenAI's coarse class of the error."""
        known = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def body(self) -> ErrorBody:
        """What stands in the answer, beside the headers."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return ErrorBody.model_validate(self.details | fields)


Prompt = Annotated[str, Field(min_length=1)]


class ImageRequest(BaseModel):
    """Body of ``POST /v1/images/generations``. Unknown fields are refused by name.

    The fields from ``negative_prompt`` on are additions to OpenAI's; those of OpenAI's that have one meaning here
    (``quality``, ``background`` …) are accepted with that meaning only.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1)] = Field(
        description="What the picture shall show; of a list, each prompt gets n pictures."
    )
    model: str | None = Field(default=None, description="Name of the served model; the default is the only one.")
    n: int | None = Field(default=1, ge=1, description="Number of pictures of each prompt.")
    size: str | None = Field(
        default="auto", description='"auto" (the model\'s own), or one of the sizes that GET /v1/models lists.'
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default="b64_json", description="url: a link that is good for a time; not in a stream."
    )
    output_format: Format | None = Field(default="png", description="Of the picture's file.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="Quality of jpeg and webp, 100 (the default) is the best. Of png: 100 only."
    )
    user: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="Whom the picture is for; kept as a keyed hash, so that it can be erased."
    )
    safety_identifier: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="OpenAI's newer name of 'user', which it takes the place of."
    )
    stream: bool | None = Field(default=False, description="Answer with server-sent events.")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        default=None, description="Previews of each picture, in a stream."
    )
    quality: Literal["auto", "standard"] | None = Field(default=None, description="There is one quality.")
    style: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description='Name of a style of GET /v1/styles; "natural" is none of them.'
    )
    background: Literal["auto", "opaque"] | None = Field(default=None, description="Pictures are opaque.")
    moderation: Literal["auto"] | None = Field(default=None, description="As the server's policy has it.")
    negative_prompt: str | None = Field(default=None, description="What the picture shall not show.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Of the first picture; the next ones count up. Random if absent.",
    )
    num_inference_steps: int | None = Field(
        default=None, ge=1, description="Denoising steps: more take longer and, up to a point, draw better."
    )
    guidance_scale: float | None = Field(
        default=None, ge=1.0, le=MAX_GUIDANCE, description="How closely the prompt is followed; 1 is without guidance."
    )
    sampler: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description="One of those that GET /v1/models lists; the first of them by default."
    )
    progress: bool | None = Field(
        default=False, description="Events of type image_generation.progress, in a stream; OpenAI has none."
    )
    version: Annotated[str, Field(max_length=32)] | None = Field(
        default=None, description='"champion", "challenger" or a version\'s number, where the server compares versions.'
    )

    @property
    def prompts(self) -> list[str]:
        """All prompts, also of a request with one."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def format(self) -> Format:
        """Of the pictures that are sent."""
        return self.output_format or "png"

    @property
    def quality_percent(self) -> int:
        """Of jpeg and webp, 0..100."""
        return 100 if self.output_compression is None else self.output_compression

    @property
    def end_user(self) -> str | None:
        """Whom the pictures are for, as the client calls them."""
        return self.safety_identifier or self.user or None


@dataclass(frozen=True)
class Lora:
    """The adapter of a style: its name, the digest of its artifact, and the local folder of its weights."""

    name: str
    digest: str
    folder: Path


@dataclass(frozen=True)
class Order:
    """One prompt of a request, within the limits and with defaults filled in: what the engine draws."""

    prompt: str  # what the model is told: of a style of words, with its words
    negative_prompt: str | None
    seeds: tuple[int, ...]  # one a picture
    steps: int
    guidance_scale: float
    ignored: tuple[str, ...] = ()  # fields that were given and that the model has no use for
    style: Lora | None = None
    width: int = 0  # pixels; 0 with height 0: the model's own size
    height: int = 0
    sampler: str | None = None  # None: the model's own


def largest_body(serve: Serve) -> int:
    """Size of a request body, in bytes, with every prompt at full length and every character escaped."""
    return _BODY_BASE + (serve.max_images + 1) * _BODY_PER_CHAR * serve.max_prompt_chars


def parse(body: bytes) -> ImageRequest:
    """The request in ``body``.

    Raises:
        ApiError: 400; not JSON, not UTF-8, an unknown field, a wrong type or value.
    """
    try:
        return ImageRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explained(error.errors(include_url=False)[0]) from None


def _explained(error: Any) -> ApiError:
    param = str(error["loc"][0]) if error["loc"] else None
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
    expected = "Input should be a text or a list of texts, none of them empty" if param == "prompt" else error["msg"]
    return ApiError(400, "invalid_value", f"'{param}': {expected[:300]}.", param=param)
