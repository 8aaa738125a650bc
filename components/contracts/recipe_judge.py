"""The recipe's ``assess`` and ``release`` sections: how a model is measured, and what it must reach."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.contracts.recipe_base import Config, Fraction, PositiveInt


class Assess(Config):
    """Protocol of the judgement, stamped on every number."""

    prompts: PositiveInt = 512  # prompts drawn from the held-out prompt set
    world_prompts: bool = True  # grade pictures with the exact grader where the prompt is of the embedded world
    steps: PositiveInt = 16
    guidance_scale: float = Field(default=2.0, ge=1.0)
    batch_size: PositiveInt = 64
    r_precision_candidates: PositiveInt = 100  # 1 true caption against 99 others
    judge_images: PositiveInt = 16_000  # images seen by the judge's own CLIP
    judge_batch_size: PositiveInt = 256
    sheet: PositiveInt = 48  # pictures on the sample sheet


class Release(Config):
    """The gate: limits that every model must keep, and what a challenger must keep and gain."""

    model_name: str = "atelier"
    min_fidelity: Fraction = 0.0  # floor of prompt fidelity, where it is measured
    min_r_precision: Fraction = 0.0
    # least and greatest value of a metric, null for none; e.g. {"memorised": [null, 0.02]}
    limits: dict[str, tuple[float | None, float | None]] = Field(default_factory=dict)
    max_regression: Fraction = 0.03  # of fidelity (or R-precision) on the champion's prompts, absolute
    must_improve: tuple[Literal["fidelity", "r_precision"], ...] = ()  # on at least one prompt set each
    max_frechet_ratio: float = Field(default=1.5, gt=0)  # challenger / champion on the same judge
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    max_turns: PositiveInt = 3  # how often the prompts are drawn, from other seeds, where that does not tell yet
