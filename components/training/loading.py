"""Autoencoder and text encoder, trained here or loaded: what others trained becomes an artifact like ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.contracts.errors import RecipeError, TrainingError
from components.runtime.progress import say
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome
from components.training import stages
from components.training.latents import require_multiple


def text_encoder_of(
    ctx: Context,
    dataset: Artifact,
    start: Artifact | None = None,
    measure: Callable[[Path, Artifact], Mapping[str, Any]] | None = None,
) -> Artifact:
    """The text encoder that the recipe asks for: ``model/`` (CLIP or T5) and ``tokenizer/``.

    With ``train.text_encoder.source`` it is that model, copied, and with ``fine_tune`` trained on; else it is trained.

    Args:
        start: the champion's, which training goes on from, or which must be the loaded one.
        measure: of what is trained, see :func:`components.training.stages.train_text_encoder`.

    Raises:
        RecipeError: the source is no such model. TrainingError: training failed, or the champion has another one.
    """
    section = ctx.recipe.train.text_encoder
    if section.source is None:
        return stages.train_text_encoder(ctx, dataset, start, measure=measure)
    from components.models.loading import copy_text_encoder, fetch, weights_digest

    folder = fetch("text_encoder", section.source, section.revision)

    def build(draft: Draft) -> Outcome:
        facts = copy_text_encoder(folder, draft.dir / "model", draft.dir / "tokenizer", section.max_tokens)
        look = folder / "preprocessor_config.json"
        if look.is_file():  # how its picture tower wants pictures
            shutil.copy(look, draft.dir / "model")
        say(f"text encoder: {section.source}, {facts['kind']}, {facts['max_tokens']} tokens of width {facts['width']}")
        return Outcome(evidence=facts, circumstance=_origin(section))

    config = {"weights": weights_digest("text_encoder", folder), "max_tokens": section.max_tokens}
    loaded = run_stage(ctx, "text_encoder", {}, config, build)
    if section.fine_tune:
        return stages.train_text_encoder(ctx, dataset, start, source=loaded, measure=measure)
    return _unchanged(loaded, start, "text_encoder")


def autoencoder_of(ctx: Context, dataset: Artifact, start: Artifact | None = None) -> Artifact:
    """The autoencoder that the recipe asks for, ``model/``: that of ``train.autoencoder.source``, or one trained here.

    Raises:
        RecipeError: the source is no such model, or its factor is not the recipe's. TrainingError: training failed,
            the champion has another one, or the dataset's pictures do not fit.
    """
    section, family = ctx.recipe.train.autoencoder, ctx.recipe.train.denoiser.family
    if section.source is None:
        return stages.train_autoencoder(ctx, dataset, start)
    from components.models.autoencoder import Grid
    from components.models.loading import copy_autoencoder, fetch, weights_digest
    from components.models.pipeline import require_together

    folder = fetch("autoencoder", section.source, section.revision)

    def build(draft: Draft) -> Outcome:
        grid = copy_autoencoder(folder, draft.dir / "model")
        say(f"autoencoder: {section.source}, {grid.kind}, factor {grid.factor}, {grid.channels} channels")
        return Outcome(evidence=vars(grid), circumstance=_origin(section))

    made = run_stage(ctx, "autoencoder", {}, {"weights": weights_digest("autoencoder", folder)}, build)
    grid = Grid.of(made.local() / "model")
    if grid.factor != section.factor:
        raise RecipeError(
            f"train.autoencoder.factor is {section.factor}; {section.source} makes one latent of {grid.factor} pixels",
            expected="the model's own factor, by which the sizes of the dataset's pictures were chosen",
            remedy=f"set train.autoencoder.factor={grid.factor}",
        )
    if section.scaling == "config" and not grid.scaling:
        raise RecipeError(
            f"train.autoencoder.scaling is config; {section.source} names no scaling_factor",
            remedy="set train.autoencoder.scaling=measured",
        )
    require_together(family, grid.kind)
    require_multiple(dataset, grid.factor * ctx.recipe.train.denoiser.downsampling, "autoencoder and denoiser")
    return _unchanged(made, start, "autoencoder")


def _origin(section: Any) -> dict[str, str | None]:
    return {"source": section.source, "revision": section.revision}


def _unchanged(made: Artifact, start: Artifact | None, part: str) -> Artifact:
    """A denoiser cannot go on with another text encoder or autoencoder than it has learnt to read."""
    if start is not None and start.digest != made.digest:
        raise TrainingError(
            f"The {part.replace('_', ' ')} of train.{part}.source is not that of the champion, {start.short}",
            expected="the same weights, since the denoiser goes on from the champion's",
            remedy=f"restore train.{part}.source, or train from the beginning under another recipe name",
        )
    return made
