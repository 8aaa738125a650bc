"""Stages of the families that draw in one pass: a cnn, vae or gan on a frozen text encoder, and the model of both.

The two-step training of the literature: :func:`components.training.stages.train_text_encoder` comes first, with the
contrastive loss, DAMSM or both, and is not touched any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from components.contracts.errors import TrainingError
from components.contracts.recipe import Family
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome
from components.training.latents import side_of
from components.training.stages import identity_of, images_of, inputs_of, model_of, plan_of, train_task

PARTS: Mapping[Family, tuple[str, ...]] = {  # kinds of the artifacts that a model is made of
    "diffusion": ("text_encoder", "autoencoder", "denoiser"),
    "cnn": ("text_encoder", "cnn"),
    "vae": ("text_encoder", "vae"),
    "gan": ("text_encoder", "gan"),
}
_SEEDS = {"cnn": 21, "vae": 22, "gan": 23}  # added to the recipe's seed: every training has its own
_SHAPE = {  # what a champion and its successor must share
    "cnn": ("channels", "max_channels"),
    "vae": ("channels", "max_channels", "latent", "prior"),
    "gan": (
        "stages", "channels", "discriminator_channels", "noise", "condition", "residual_blocks", "norm", "memory",
        "spectral_norm",
    ),
}  # fmt: skip


def champion_parts(ctx: Context, champion: Artifact | None) -> dict[str, Artifact]:
    """The parts of the champion that a retrain goes on from, by kind; empty without a champion.

    Raises:
        TrainingError: the champion is of another family than the recipe.
    """
    if champion is None:
        return {}
    family, inputs = ctx.recipe.model.family, champion.manifest.inputs
    if not set(PARTS[family]) <= set(inputs):
        found = next((name for name, parts in PARTS.items() if set(parts) <= set(inputs)), "unknown")
        raise TrainingError(
            f"The champion {champion.short} is of the family {found}, and the recipe says model.family={family}",
            expected="one family, since a retrain goes on from the champion's weights",
            remedy=f"set model.family={found}, or train the {family} from the beginning: `atelier run` judges it "
            "against the champion",
        )
    return {kind: ctx.store.by_digest(kind, inputs[kind]) for kind in PARTS[family]}


def train_network(
    ctx: Context,
    dataset: Artifact,
    text_encoder: Artifact,
    start: Artifact | None = None,
    texts: Artifact | None = None,
) -> Artifact:
    """The recipe's cnn, vae or gan, trained on the dataset's pictures and the readings of their captions: ``model/``.

    Args:
        text_encoder: a CLIP; frozen. start: the champion's artifact of the same kind. texts: states of the captions,
            where they were encoded beforehand.

    Raises:
        TrainingError: training failed, the text encoder is no CLIP, or the champion has another shape.
    """
    family = ctx.recipe.model.family
    section: Any = getattr(ctx.recipe.train, family)
    seen = images_of(section.images, ctx.recipe.retrain.network, start)
    _same_shape(family, section, start)

    def build(draft: Draft) -> Outcome:
        from components.models.reading import require_clip

        clip = require_clip(text_encoder.local() / "model")
        task = _task(family)(
            section, dataset.local(), clip, text_encoder.local() / "tokenizer", side_of(dataset), model_of(start),
            texts.local() if texts else None, ctx.recipe.train.captions == "sampled", name=family,
        )  # fmt: skip
        return train_task(ctx, draft, task, plan_of(ctx, section, seen, _SEEDS[family], section.ema_decay), dataset)

    inputs = {**inputs_of(start, dataset=dataset, text_encoder=text_encoder)}
    if texts:
        inputs["text_states"] = texts
    config = {**identity_of(ctx, section, seen, _SEEDS[family]), "captions": ctx.recipe.train.captions}
    return run_stage(ctx, family, inputs, config, build)


def assemble_network(ctx: Context, dataset: Artifact, text_encoder: Artifact, network: Artifact) -> Artifact:
    """The model: a folder that :func:`components.models.families.load_generator` opens.

    Its evidence holds, for each training, images seen, steps, digest of the sample order and the loss curve.
    """

    def build(draft: Draft) -> Outcome:
        from components.models.one_pass import save_model
        from components.models.text_encoder import load_clip, load_tokenizer

        clip = load_clip(text_encoder.local() / "model")
        tokenizer = load_tokenizer(text_encoder.local() / "tokenizer")
        save_model(draft.dir, network.local() / "model", clip, tokenizer)
        stages = {"text_encoder": text_encoder, network.manifest.kind: network}
        return Outcome(
            counts={"rows": dataset.manifest.counts.get("rows", 0)},
            evidence={"trainings": {name: _record(artifact) for name, artifact in stages.items()}},
            circumstance={name: artifact.manifest.circumstance for name, artifact in stages.items()},
        )

    inputs = {"dataset": dataset, "text_encoder": text_encoder, network.manifest.kind: network}
    return run_stage(ctx, "model", inputs, {}, build)


def _task(family: str) -> Any:
    if family == "cnn":
        from components.training.task_cnn import CnnTask

        return CnnTask
    if family == "vae":
        from components.training.task_vae import VaeTask

        return VaeTask
    from components.training.task_gan import GanTask

    return GanTask


def _record(artifact: Artifact) -> dict[str, Any]:
    """What a training leaves in the model's evidence; a text encoder that was loaded has no curve."""
    curve = json.loads(artifact.path("curve.json").read_text()) if "curve.json" in artifact.manifest.files else []
    return {**artifact.manifest.evidence, **artifact.manifest.counts, "curve": curve}


def _same_shape(family: str, section: Any, start: Artifact | None) -> None:
    if start is None:
        return
    now, then = section.identity(), start.manifest.config
    changed = [f"{key} {then.get(key)} -> {now[key]}" for key in _SHAPE[family] if now[key] != then.get(key)]
    if changed:
        raise TrainingError(
            f"The recipe's train.{family} has another shape than {start.short}: {', '.join(changed)}",
            expected="the champion's shape, since training goes on from its weights",
            remedy="restore these values, or train from the beginning under another recipe name",
        )
