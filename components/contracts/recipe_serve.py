"""The recipe's ``serve`` and ``watch`` sections: limits of the image API, and when its world has drifted."""

from __future__ import annotations

from pydantic import Field

from components.contracts.recipe_base import Config, Fraction, PositiveInt


class Serve(Config):
    """Limits and defaults of the image API."""

    default_steps: PositiveInt = 16
    max_steps: PositiveInt = 50
    default_guidance: float = Field(default=2.0, ge=1.0)
    max_images: PositiveInt = 8  # n of one request
    max_prompt_chars: PositiveInt = 1000
    max_batch: PositiveInt = 16
    max_queue: PositiveInt = 128  # requests waiting; one more is answered 429
    blocked_words: tuple[str, ...] = ()


class Watch(Config):
    """When the world is said to have drifted, and what follows."""

    min_requests: PositiveInt = 50
    threshold: Fraction = 0.3  # share of drifted columns at which the dataset is called drifted
    unknown_word_share: Fraction = 0.1  # share of prompts with a word no training caption has
    max_error_rate: Fraction = 0.05  # of the champion's requests; above it: roll back
