"""The recipe's ``serve.moderation`` section: which prompts and pictures are refused."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.contracts.recipe_base import Config, Fraction

# OpenAI's names, and "privacy", which theirs have not
Category = Literal[
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "privacy",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
]


class Concept(Config):
    """Something that pictures must not show, in words for CLIP; see ``serving/moderation_pictures.py``."""

    text: str = Field(min_length=1)
    threshold: float = Field(ge=-1.0, le=1.0)  # cosine of picture and text above which the concept is said to be there
    action: Literal["block", "flag", "log"] = "block"  # log: sent as usual, the score is in the verdict
    special_care: bool = False  # where this one is there, the thresholds of the others are lowered by `adjustment`


JUDGE = "judge"


class PictureModeration(Config):
    """Concepts that are looked for in every picture drawn; off without a CLIP."""

    clip: str | None = None  # folder of a transformers CLIP; "judge": the newest judge's, see docs/serving.md
    concepts: dict[str, Concept] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _have_both(self) -> PictureModeration:
        if bool(self.clip) != bool(self.concepts):
            missing, given = ("clip", "concepts") if self.concepts else ("concepts", "clip")
            raise ValueError(f"serve.moderation.pictures has {given} and no {missing}: no picture would be checked")
        return self


class Moderation(Config):
    """Prompts by words and rules, and a classifier where one is named; pictures by concepts."""

    prompts: bool = True
    block_at: Fraction = 0.7  # score of a category from which on a prompt is refused
    flag_at: Fraction = 0.4  # and from which on it is drawn, with the category in the logbook
    allow: tuple[Category, ...] = ()  # categories that are not looked for
    classifier: str | None = None  # folder of a transformers text classifier, safetensors
    classifier_labels: dict[str, Category | None] = Field(default_factory=dict)  # its labels' categories, or null
    pictures: PictureModeration = PictureModeration()
