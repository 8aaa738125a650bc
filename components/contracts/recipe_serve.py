"""The recipe's ``serve`` and ``watch`` sections: limits of the image API, and when its world has drifted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, field_validator

from components.contracts.recipe_base import Config, Fraction, PositiveInt
from components.contracts.recipe_moderation import Moderation

StyleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]


class Template(Config):
    """A style of words alone. ``prompt`` holds ``{prompt}`` where the words of the request go."""

    prompt: str
    negative: str = ""  # before the request's own negative prompt
    palette: tuple[str, ...] = ()  # colours by name, said at the end: "…, in navy, teal and gold"

    def around(self, prompt: str) -> str:
        """What the model is told of ``prompt``; nothing in it is read as a template again."""
        said = self.prompt.replace("{prompt}", prompt)
        if not self.palette:
            return said
        *others, last = self.palette
        return f"{said}, in {', '.join(others)} and {last}" if others else f"{said}, in {last}"

    @field_validator("prompt")
    @classmethod
    def _has_one_place(cls, prompt: str) -> str:
        if prompt.count("{prompt}") != 1:
            raise ValueError(f"the template {prompt!r} must hold {{prompt}} once, where the words of the request go")
        return prompt


class Serve(Config):
    """Limits and defaults of the image API."""

    default_steps: PositiveInt = 16
    max_steps: PositiveInt = 50
    default_guidance: float = Field(default=2.0, ge=1.0)
    max_images: PositiveInt = 8  # n of one request
    max_prompt_chars: PositiveInt = 1000
    max_batch: PositiveInt = 16  # pictures in a step at most; the warm-up of a model finds how many are worth it
    max_queue: PositiveInt = 128  # requests waiting; one more is answered 429
    max_wait_s: Annotated[float, Field(gt=0)] | None = None  # a request predicted to wait longer is answered 429
    # besides the model's own, as "WIDTHxHEIGHT" in pixels; multiples of the model's granularity
    sizes: tuple[Annotated[str, Field(pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")], ...] = ()
    blocked_words: tuple[str, ...] = ()  # in no prompt, in any case or disguise
    moderation: Moderation = Moderation()
    max_work: PositiveInt = 500_000_000  # pictures x steps x pixels of one request
    examples: tuple[str, ...] = ()  # prompts that the playground offers
    templates: dict[StyleName, Template] = Field(default_factory=dict)  # styles of words alone
    url_minutes: PositiveInt = 60  # how long a picture sent as a link can be fetched
    url_mb: Annotated[int, Field(ge=16)] = 256  # of such pictures on disk; the oldest go
    public_url: str = ""  # what their links begin with, e.g. https://images.example.org; "": as it was asked
    requests_per_minute: NonNegativeInt = 6000  # of one API key that has no rate of its own; 0: no limit
    pictures_per_day: NonNegativeInt = 100_000  # of one API key that has no quota of its own; 0: no limit
    log_prompts: Literal["redacted", "full", "none"] = "redacted"  # redacted: personal data is replaced
    log_days: NonNegativeInt = 90  # rows of the logbook that are older are deleted; 0: kept for ever
    watermark: bool = False  # an invisible mark in every picture, read by `atelier verify`

    canary_share: Fraction = 0.0  # of the API keys, whose requests the version aliased `challenger` answers
    shadow_share: Fraction = 0.0  # of the requests, drawn by the challenger, or the version aliased `shadow`, too
    compare: bool = False  # a request may ask for the challenger by `version`
    probation_requests: NonNegativeInt = 50  # of a new champion; dropped when too many of them fail; 0: never
    quality_share: Fraction = 0.0  # of the requests, whose picture the judge's CLIP holds against its prompt

    @field_validator("templates")
    @classmethod
    def _are_not_openais(cls, templates: dict[str, Template]) -> dict[str, Template]:
        if taken := sorted({"natural", "vivid", "none"} & set(templates)):
            raise ValueError(f"a template cannot be called {taken[0]!r}: that is a style of OpenAI's, or none at all")
        return templates


class Watch(Config):
    """When the world is said to have drifted, and what follows."""

    min_requests: PositiveInt = 50
    threshold: Fraction = 0.3  # share of drifted columns at which the dataset is called drifted
    unknown_word_share: Fraction = 0.1  # share of prompts with a word no training caption has
    max_error_rate: Fraction = 0.05  # of the champion's requests; above it: roll back
    # 95th percentile of the champion's latency by that of the version before it; above it: roll back; None: any
    max_latency_ratio: Annotated[float, Field(gt=1.0)] | None = None
    max_quality_drop: Fraction = 0.05  # of the mean cosine of prompt and picture, where serve.quality_share measures it
