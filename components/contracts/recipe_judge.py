"""The recipe's ``assess`` and ``release`` sections: how a model is measured, and what it must reach."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from components.contracts.recipe_base import Config, Fraction, PositiveInt

Window = tuple[float | None, float | None]  # least and greatest value, null for none

#: What every model must keep to: a result too good is a sign that the test leaked into training, or was memorised.
SANITY: dict[str, Window] = {
    "memorised": (None, 0.5),  # share of pictures that are nearer to a training picture than others can be
    "trained/memorised": (None, 0.5),  # the same where captions of the training are asked for
    "leaked": (None, 0.5),  # share of pictures that are nearer to a held-out picture
    "frechet_vs_real": (0.5, None),  # times as far from the held-out pictures as pictures of the training are
}


class Extractor(Config):
    """A further network that looks at pictures, beside the judge's own CLIP."""

    kind: Literal["inception", "clip", "dinov2"]
    # folder, or id on the Hugging Face hub; of inception the file of its weights, null for the one that is published
    source: str | None = None
    name: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_-]{0,30}$")  # after which metrics are called

    @property
    def called(self) -> str:
        """Its name, by default its kind."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.source is None and self.kind != "inception":
            raise ValueError(f"a {self.kind} needs a source: a folder, or an id on the Hugging Face hub")
        return self


class Assess(Config):
    """Protocol of the judgement, stamped on every number."""

    prompts: PositiveInt = 512  # of each prompt set, drawn from it where it has more
    world_prompts: bool = True  # grade pictures with the exact grader where the prompt is of the embedded world
    prompt_sets: dict[str, str] = Field(default_factory=dict)  # further sets: name and file, see docs/evaluation.md
    memorisation_prompts: PositiveInt = 64  # captions of the training that are asked for too, to see what was memorised
    diversity_prompts: PositiveInt = 16  # prompts that are drawn several times,
    diversity_images: int = Field(default=4, ge=2)  # this often
    steps: PositiveInt = 16
    guidance_scale: float = Field(default=2.0, ge=1.0)
    batch_size: PositiveInt = 64
    r_precision_candidates: PositiveInt = 100  # 1 true caption against 99 others
    extractors: tuple[Extractor, ...] = ()
    atoms: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")  # "package.module:function", a grader of your own
    # what no picture should show, and the cosine with its name from which a picture shows it; empty: not measured
    concepts: dict[str, float] = Field(default_factory=dict)
    judge_images: PositiveInt = 16_000  # images seen by the judge's own CLIP
    judge_batch_size: PositiveInt = 256
    sheet: PositiveInt = 48  # pictures on the sample sheet

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [each.called for each in self.extractors]
        if len(set(names)) < len(names) or "judge" in names:
            raise ValueError(f"extractors need names of their own, not judge; found {', '.join(names)}")
        for name in self.prompt_sets:
            if name in ("known", "new", "trained", "stamp", "diversity") or not name.replace("_", "").isalnum():
                raise ValueError(
                    f"a prompt set cannot be called {name!r}: letters, digits and _, and none of known, new, trained, "
                    "stamp, diversity"
                )
        return self


class Release(Config):
    """The gate: limits that every model must keep, and what a challenger must keep and gain."""

    model_name: str = "atelier"
    min_fidelity: Fraction = 0.0  # floor of prompt fidelity, where it is measured
    min_r_precision: Fraction = 0.0
    # window of a metric on the first prompt set, or "set/metric"; laid over the default ones, [null, null] for no limit
    limits: dict[str, Window] = Field(default_factory=dict)
    max_regression: Fraction = 0.03  # of fidelity (or R-precision) on the champion's prompts, absolute
    must_improve: tuple[Literal["fidelity", "r_precision"], ...] = ()  # on at least one prompt set each
    max_frechet_ratio: float = Field(default=1.5, gt=0)  # challenger / champion on the same judge
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    max_turns: PositiveInt = 3  # how often the prompts are drawn, from other seeds, where that does not tell yet

    @field_validator("limits", mode="before")
    @classmethod
    def _over_the_default_ones(cls, given: Any) -> Any:
        return {**SANITY, **given} if isinstance(given, dict) else given
