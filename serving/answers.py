"""What the image API answers with, in OpenAI's shape: pictures, errors, models, styles, and the events of a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Format = Literal["png", "jpeg", "webp"]
Size = Annotated[str, Field(pattern=r"^\d+x\d+$", description="WIDTHxHEIGHT, in pixels.")]


class ErrorBody(BaseModel):
    """The inside of an error answer. Some errors have more: see docs/serving.md."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """``{"error": {...}}``, for every status of 400 and above."""

    error: ErrorBody


class ImageData(BaseModel):
    """One picture with the seed that makes it again; or, where it was refused after drawing, the ``error`` instead."""

    b64_json: str | None = Field(default=None, description="The picture, base64; null with response_format 'url'.")
    url: str | None = Field(default=None, description="Where the picture is for a time, with response_format 'url'.")
    revised_prompt: None = None
    seed: int
    prompt_index: int = Field(default=0, description="Which of the request's prompts it shows, from 0.")
    truncated: bool = Field(description="The prompt is longer than the text encoder reads; its end had no effect.")
    negative_truncated: bool = Field(default=False, description="The same of the negative prompt.")
    error: ErrorBody | None = Field(default=None, description="Why this picture is withheld; null when it is not.")


class ImagesResponse(BaseModel):
    """Answer of ``POST /v1/images/generations``. ``created`` is in seconds since 1970."""

    created: int
    data: list[ImageData]
    model: str
    model_version: str
    size: Size
    style: str | None = None
    output_format: Format = "png"
    background: Literal["opaque"] = "opaque"
    ignored: list[str] = Field(
        default=[], description="Fields of the request that have no effect on a model of this family."
    )


class Event(BaseModel):
    """What every event of a stream has; ``type`` is also the name of the server-sent event."""

    type: str
    created_at: int
    request_id: str


class ProgressEvent(Event):
    """Where the request stands; sent when it was asked for with ``"progress": true``."""

    type: Literal["image_generation.progress"] = "image_generation.progress"
    state: Literal["queued", "drawing"]
    ahead: int = Field(description="Requests before this one in the queue.")
    step: int = Field(description="Denoising steps done, of all its pictures together.")
    steps: int
    seconds_left: float | None = Field(description="Predicted; null when it cannot be told yet.")


class PictureEvent(Event):
    """What OpenAI's events of a picture have, and which picture of the request it is."""

    b64_json: str
    image_index: int = Field(description="Which picture of the request, from 0.")
    size: Size
    output_format: Format
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"


class PartialImageEvent(PictureEvent):
    """A preview: what the picture looks like before the last step. ``partial_image_index`` counts those of it."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int
    step: int
    steps: int


class CompletedEvent(PictureEvent):
    """A finished picture; see :class:`ImageData` and :class:`ImagesResponse` for the fields."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    seed: int
    prompt_index: int
    truncated: bool
    negative_truncated: bool
    model: str
    model_version: str
    style: str | None
    ignored: list[str]


class RefusedEvent(Event):
    """A picture that was withheld after drawing, and why."""

    type: Literal["image_generation.refused"] = "image_generation.refused"
    image_index: int
    seed: int
    prompt_index: int
    error: ErrorBody


class ErrorEvent(BaseModel):
    """The end of a stream that failed after its first event."""

    type: Literal["error"] = "error"
    error: ErrorBody


class StyleInfo(BaseModel):
    """One style, as ``GET /v1/styles`` lists it."""

    id: str = Field(description="What the request field 'style' asks for it by.")
    object: Literal["style"] = "style"
    kind: Literal["adapter", "template"] = Field(
        default="adapter", description="adapter: weights trained for it; template: words around the prompt."
    )
    caption: str = Field(description="adapter: what its subject was called in training; template: its words.")
    model_version: str = Field(description="That an adapter was made for; empty where that was never registered.")
    available: bool = Field(description="It fits the version that is served.")
    palette: list[str] = Field(default=[], description="Colours that a template asks for, by name.")


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
    size: Size
    sizes: list[Size] = Field(description="All that can be asked for; the model's own first.")
    samplers: list[str] = Field(description="All that can be asked for, the model's own first; empty: no choice.")
    family: str = Field(description="diffusion, gan, vae or cnn.")
    uses_steps: bool = Field(description="Steps, guidance scale and negative prompt have an effect.")
    uses_seed: bool = Field(description="False: one prompt gives one picture, whatever the seed.")


class ModelList(BaseModel):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class Cancelled(BaseModel):
    """Answer of ``DELETE /v1/requests/{id}``."""

    id: str
    object: Literal["request"] = "request"
    cancelled: Literal[True] = True


class Health(BaseModel):
    """Answer of ``GET /healthz``: ``degraded`` means that something needs a look at the log."""

    status: Literal["ok", "degraded"]
    model: str
    model_version: str | None
    loading: str | None = Field(description="A version that is being loaded.")
    registry: Literal["ok", "unreachable"]
    refused_version: str | None = Field(description="A champion that cannot be served, or was given up.")
    dropped: bool = Field(description="It was given up because its first requests failed.")
    challenger: str | None = Field(description="The version that is tried beside the champion.")
    shadow: str | None = Field(description="The version that draws the same requests unseen.")
    logbook: Literal["ok", "failing"]
    quota: Literal["ok", "failing"]
    moderation: dict[str, Any] | None = Field(description="Which layers are on; null: none.")


class Ready(BaseModel):
    """Answer of ``GET /readyz``."""

    status: Literal["ready"] = "ready"
    model_version: str


class Version(BaseModel):
    """Answer of ``GET /version``: what is served, by its version in the registry and the digest of its artifact."""

    model: str
    model_version: str | None
    digest: str | None
