"""How a stage of training is set out: what is looked at before it, its plan, and its identity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.training.latents import picture_sizes, side_of
from components.training.rules import require_full_precision

if TYPE_CHECKING:
    from components.training.preflight import Report

_TRAIN = (  # keys of the section `train` that every training shares
    "warmup", "cooldown", "precision", "gradient_clip", "validation_points", "validation_images",
)  # fmt: skip


def preflight_of(
    ctx: Context,
    kind: str,
    dataset: Artifact,
    start: Artifact | None,
    section: Any,
    latents: Artifact | None = None,
    text_encoder: Artifact | None = None,
) -> tuple[list[Report], Callable[[], None]]:
    """What to call before the training, and where it leaves what it found."""
    found: list[Report] = []

    def check() -> None:
        from components.training import preflight, probes
        from components.training.samples import table

        train = ctx.recipe.train.model_copy(update={kind: section})
        recipe = ctx.recipe.model_copy(update={"train": train})
        height, width = picture_sizes(dataset)[-1]
        shapes = replace(probes.Shapes.of(recipe), height=height, width=width)
        if latents and text_encoder:
            from components.models.text_encoder import saved_width

            facts = json.loads(latents.path("latents.json").read_text())
            shapes = replace(
                shapes, latent_channels=facts["channels"], factor=side_of(dataset) // facts["size"],
                text_width=saved_width(text_encoder.local() / "model"),
            )  # fmt: skip
        if folder := model_of(start):
            require_full_precision(folder, words_of(kind))
        make = {
            "text_encoder": probes.text_encoder_probe, "autoencoder": probes.autoencoder_probe,
            "denoiser": probes.denoiser_probe,
        }[kind]  # fmt: skip
        rows = table(dataset.local(), ["height"]).num_rows
        found.append(preflight.check_training(make(recipe, shapes), recipe, rows))

    return found, check


def plan_of(
    ctx: Context, section: Any, images: int, seed: int, ema_decay: float | None = None, found: Report | None = None
) -> Any:
    """The plan of a training, as the recipe has it. ``found``: what preflight reckoned of it."""
    from components.training.engine import Optimiser
    from components.training.loop import Plan
    from components.training.measures import Measures

    train, run = ctx.recipe.train, ctx.recipe.run
    return Plan(
        images=images,
        batch_size=section.batch_size,
        optimiser=Optimiser(section.learning_rate, section.muon_rate, section.weight_decay, train.gradient_clip),
        warmup=train.warmup,
        cooldown=train.cooldown,
        ema_decay=ema_decay,
        bf16=train.precision == "bf16",
        seed=ctx.recipe.seed * 1009 + seed,
        ema_length=getattr(section, "ema_length", None),
        zero_stage=run.zero_stage,
        offload=run.offload,
        accumulate=run.accumulate,
        gradient_checkpointing=run.gradient_checkpointing,
        compile=run.compile,
        checkpoint_every_s=run.checkpoint_every_s,
        keep_last=run.keep_last,
        keep_best=run.keep_best,
        measures=Measures(
            validation_points=train.validation_points,
            validation_images=train.validation_images,
            sheet_images=run.sheet_images,
            flops_per_image=found.flops_per_image if found else 0.0,
            price_per_device_hour=run.price_per_device_hour,
            memory_bytes=found.estimate.device if found else 0,
        ),
    )


def identity_of(ctx: Context, section: TextEncoder | Autoencoder | Denoiser, images: int, seed: int) -> dict[str, Any]:
    train = ctx.recipe.train
    return {
        **section.identity(),
        "images": images,
        "seed": ctx.recipe.seed * 1009 + seed,
        **{name: getattr(train, name) for name in _TRAIN},
    }


def images_of(images: int, share: float, start: Artifact | None) -> int:
    return images if start is None else max(1, math.ceil(images * share))


def inputs_of(start: Artifact | None, **inputs: Artifact) -> Mapping[str, Artifact]:
    return inputs if start is None else {**inputs, "start": start}


def model_of(start: Artifact | None) -> Path | None:
    return start.local() / "model" if start else None


def words_of(kind: str) -> str:
    return kind.replace("_", " ")
