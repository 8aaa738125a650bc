"""From a request to orders: the recipe's limits, the defaults, and what the served model can do."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from components.contracts.recipe import Serve
from components.models.families import ImageGenerator
from serving.schemas import MAX_SEED, ApiError, ImageRequest, Order, largest_body, parse

NO_STYLE = (None, "natural")


@dataclass(frozen=True)
class Limits:
    """The recipe's ``serve`` section, applied to requests for the model called ``model``."""

    serve: Serve
    model: str

    @property
    def max_body(self) -> int:
        """Largest request body, in bytes."""
        return largest_body(self.serve)

    def parse(self, body: bytes) -> ImageRequest:
        """The request in ``body``; see :func:`serving.schemas.parse`."""
        return parse(body)

    def sizes(self, generator: ImageGenerator) -> list[tuple[int, int]]:
        """Width and height that a request may ask of this model, in pixels; its own first."""
        own, step = generator.image_size, generator.granularity
        listed = [(int(w), int(h)) for w, _, h in (size.partition("x") for size in self.serve.sizes)]
        fitting = [size for size in listed if step and not size[0] % step and not size[1] % step]
        return list(dict.fromkeys([(own, own), *fitting]))

    def orders(self, request: ImageRequest, generator: ImageGenerator) -> tuple[Order, ...]:
        """One order for each prompt; a style of words is applied already, an adapter is not looked up yet.

        A model of one pass has one step and no guidance, so that all its orders can be drawn together.

        Raises:
            ApiError: 400 or 404; a value outside the recipe's limits, or one that the model has no answer to.
        """
        self._check_texts(request)
        self._check_delivery(request)
        width, height = self._size(request, generator)
        serve, n, uses_steps = self.serve, request.n or 1, generator.uses_steps
        if (steps := request.num_inference_steps or serve.default_steps) > serve.max_steps:
            raise invalid("num_inference_steps", f"is {steps}; at most {serve.max_steps} are allowed")
        steps = steps if uses_steps else 1
        prompts = request.prompts
        if (pictures := n * len(prompts)) > serve.max_images:
            what = f"is {n}" if len(prompts) == 1 else f"is {n} for each of {len(prompts)} prompts"
            raise invalid("n", f"{what}; one request draws at most {serve.max_images} pictures")
        if (work := pictures * steps * width * height) > serve.max_work:
            raise invalid(
                "n", f"x steps x pixels is {pictures} x {steps} x {width * height} = {work}; one request may have at "
                f"most {serve.max_work}: ask for fewer pictures, fewer steps or a smaller size", code="too_much_work",
            )  # fmt: skip
        template = serve.templates.get(request.style or "")
        negative = request.negative_prompt or ""
        if template:
            negative = ", ".join(text for text in (template.negative, negative) if text)
        first = secrets.randbelow(2**31) if request.seed is None else request.seed
        one = Order(
            prompt="",
            negative_prompt=(negative or None) if uses_steps else None,
            seeds=(),
            steps=steps,
            guidance_scale=float(request.guidance_scale or serve.default_guidance) if uses_steps else 1.0,
            ignored=_ignored(request, generator),
            width=width,
            height=height,
            sampler=self._sampler(request, generator),
        )
        return tuple(
            replace(
                one,
                prompt=template.around(prompt) if template else prompt,
                seeds=tuple((first + i * n + k) % (MAX_SEED + 1) for k in range(n)),
            )
            for i, prompt in enumerate(prompts)
        )

    def _check_texts(self, request: ImageRequest) -> None:
        if request.model not in (None, self.model):
            raise ApiError(
                404,
                "model_not_found",
                f"The model {request.model[:100]!r} is not served here; {self.model!r} is.",
                param="model",
            )
        most = self.serve.max_prompt_chars
        for prompt in request.prompts:
            if len(prompt) > most:
                raise invalid("prompt", f"has {len(prompt)} characters; at most {most} are read")
            if not prompt.strip():
                raise invalid("prompt", "is blank; say what the picture shall show")
        if len(request.negative_prompt or "") > most:
            raise invalid("negative_prompt", f"has {len(request.negative_prompt or '')} characters; at most {most}")

    def _check_delivery(self, request: ImageRequest) -> None:
        if request.format == "png" and request.quality_percent != 100:
            raise invalid("output_compression", f"is {request.quality_percent}; png loses nothing: send 100 or none")
        if request.stream:
            if request.response_format == "url":
                raise invalid("response_format", "is 'url'; a stream carries its pictures itself: use 'b64_json'")
        elif request.partial_images:
            raise invalid("partial_images", f"is {request.partial_images}; previews need 'stream': true")
        elif request.progress:
            raise invalid("progress", "is true; it needs 'stream': true")

    def _size(self, request: ImageRequest, generator: ImageGenerator) -> tuple[int, int]:
        allowed = self.sizes(generator)
        named = {f"{width}x{height}": (width, height) for width, height in allowed}
        if (size := request.size or "auto") == "auto":
            return allowed[0]
        if size not in named:
            listed = ", ".join(f"'{name}'" for name in named)
            raise invalid("size", f"is {size[:32]!r}; this model draws {listed}: send one of these, or 'auto'")
        return named[size]

    def _sampler(self, request: ImageRequest, generator: ImageGenerator) -> str | None:
        if request.sampler is None or not generator.uses_steps:
            return None
        if request.sampler not in generator.samplers:
            listed = ", ".join(f"'{name}'" for name in generator.samplers)
            raise invalid("sampler", f"is {request.sampler!r}; this model has {listed}")
        return request.sampler


def invalid(param: str, found: str, code: str = "invalid_value") -> ApiError:
    """400: the field ``param`` is not what it may be."""
    return ApiError(400, code, f"'{param}' {found}.", param=param)


def _ignored(request: ImageRequest, generator: ImageGenerator) -> tuple[str, ...]:
    """The fields that were given and that a model of this kind has no use for."""
    steps = ("num_inference_steps", "guidance_scale", "negative_prompt", "sampler", "partial_images")
    unused: tuple[str, ...] = () if generator.uses_steps else steps
    unused += () if generator.uses_seed else ("seed",)
    return tuple(name for name in unused if getattr(request, name) not in (None, 0))
