"""Section of the recipe on personalization: `atelier finetune --images`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from components.contracts.recipe_base import Config, Fraction, PositiveInt


class Adapter(Config):
    """LoRA (Hu et al. 2022) on the denoiser of a model that is there, for a subject or a style of a few pictures.

    With ``prior``, prompts of the class that the subject belongs to, the model also trains on pictures that it drew of
    them before, so that it keeps what it could do (Ruiz et al. 2023, "DreamBooth", eq. 2).
    """

    rank: PositiveInt = 16
    alpha: float = Field(default=16.0, gt=0)  # the LoRA's output counts alpha / rank times
    targets: Literal["attention", "all"] = "all"  # layers: of every attention, or all of the denoiser's blocks
    images: PositiveInt = 4_800  # pictures of the subject seen; those of the prior come on top
    batch_size: PositiveInt = 16  # global, of the subject; as many of the prior come on top
    learning_rate: float = Field(default=2e-3, gt=0)  # of AdamW
    weight_decay: float = Field(default=0.0, ge=0)
    caption_dropout: Fraction = 0.0
    prior: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # prompts; none: nothing is preserved
    prior_images: PositiveInt = 64  # drawn in all, the prompts in turn
    prior_weight: float = Field(default=1.0, gt=0)  # of the prior's loss

    @property
    def muon_rate(self) -> float:
        """0: the narrow matrices of a LoRA are trained with AdamW."""
        return 0.0

    def identity(self) -> dict[str, Any]:
        """Without the keys of the prior: its pictures are an input of their own, and its weight counts with them."""
        kept = super().identity()
        return {k: v for k, v in kept.items() if not k.startswith("prior") or (k == "prior_weight" and self.prior)}
