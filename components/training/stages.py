"""The stages of training: each makes one artifact from a dataset and the artifacts before it.

A retrain passes ``start``, the champion's artifact of the same kind: training goes on from its weights, for
``recipe.retrain``'s share of the images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.contracts.errors import TrainingError
from components.contracts.recipe import Autoencoder, Denoiser, Run, TextEncoder
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes
from components.training.latents import require_multiple, side_of
from components.training.planning import (
    identity_of,
    images_of,
    inputs_of,
    model_of,
    plan_of,
    preflight_of,
    words_of,
)
from components.training.rules import check_parts
from components.training.shell import checkpoints_url, run_training

__all__ = [
    "assemble_model", "identity_of", "images_of", "inputs_of", "model_of", "plan_of", "train_autoencoder",
    "train_denoiser", "train_task", "train_text_encoder",
]  # fmt: skip

_TEXT, _AUTOENCODER, _DENOISER = 11, 12, 13  # added to the recipe's seed: every training has its own
_SHAPE = {  # what a champion and its successor must share
    "text_encoder": ("width", "layers", "image_layers", "heads", "patch"),
    "autoencoder": ("channels", "layers_per_block", "norm_groups", "attention", "latent_channels"),
    "denoiser": (
        "family", "channels", "layers_per_block", "norm_groups", "heads", "cross_attention", "width", "depth", "patch",
        "objective",
    ),
}  # fmt: skip


def train_text_encoder(
    ctx: Context,
    dataset: Artifact,
    start: Artifact | None = None,
    kind: str = "text_encoder",
    seed_offset: int = 0,
    config: TextEncoder | None = None,
    images: int | None = None,
    source: Artifact | None = None,
    measure: Callable[[Path, Artifact], Mapping[str, Any]] | None = None,
) -> Artifact:
    """CLIP trained on the dataset's pictures and captions: ``model/`` (CLIPModel) and ``tokenizer/``; where DAMSM is
    among its losses, its head beside the model.

    Args:
        kind: of the artifact, e.g. ``"judge_clip"`` for the judge's own eyes.
        seed_offset: added to the seed, for a CLIP that is independent of the model's.
        config: in place of the recipe's section.
        images: images seen, in place of the section's.
        source: a CLIP that others trained, to begin with; its tokenizer and shape are kept.
        measure: what the finished folder is worth on the dataset, for the evidence and MLflow.

    Raises:
        TrainingError: training failed, the champion's tokenizer is another one, or the source has no picture tower.
    """
    section = config or ctx.recipe.train.text_encoder
    seen = images or images_of(section.images, ctx.recipe.retrain.text_encoder, start)
    _same_tokenizer(source or dataset, start)
    if source:
        _require_clip(source)
    base, captions = start or source, ctx.recipe.train.captions

    def build(draft: Draft) -> Outcome:
        from components.training.task_text_encoder import TextEncoderTask

        tokenizer = (source or dataset).local() / "tokenizer"
        shutil.copytree(tokenizer, draft.dir / "tokenizer", dirs_exist_ok=True)
        task = TextEncoderTask(
            section, dataset.local(), side_of(dataset), model_of(base), words_of(kind), tokenizer,
            sampled=captions == "sampled",
        )  # fmt: skip
        told = (lambda model: measure(model.parent, dataset)) if measure else None
        plan = plan_of(ctx, section, seen, _TEXT + seed_offset, found=found[-1])
        return train_task(ctx, draft, task, plan, dataset, measure=told)

    chosen = identity_of(ctx, section, seen, _TEXT + seed_offset) | _captions_of(ctx)
    inputs = inputs_of(start, dataset=dataset)
    if source is None:
        _same_shape("text_encoder", section, start)
    else:
        inputs = {**inputs, "source": source}
    found, check = preflight_of(ctx, "text_encoder", dataset, base, section)
    return run_stage(ctx, kind, inputs, chosen, build, check=check)


def train_autoencoder(ctx: Context, dataset: Artifact, start: Artifact | None = None) -> Artifact:
    """AutoencoderKL trained on the dataset's pictures: ``model/``.

    Raises:
        TrainingError: training failed, or the champion has another shape than the recipe.
    """
    section = ctx.recipe.train.autoencoder
    seen = images_of(section.images, ctx.recipe.retrain.autoencoder, start)
    _same_shape("autoencoder", section, start)

    def build(draft: Draft) -> Outcome:
        from components.training.task_autoencoder import AutoencoderTask

        require_multiple(dataset, section.downsampling, "autoencoder")
        task = AutoencoderTask(section, dataset.local(), side_of(dataset), model_of(start))
        plan = plan_of(ctx, section, seen, _AUTOENCODER, found=found[-1])
        return train_task(ctx, draft, task, plan, dataset)

    chosen = identity_of(ctx, section, seen, _AUTOENCODER)
    found, check = preflight_of(ctx, "autoencoder", dataset, start, section)
    return run_stage(ctx, "autoencoder", inputs_of(start, dataset=dataset), chosen, build, check=check)


def train_denoiser(
    ctx: Context,
    dataset: Artifact,
    latents: Artifact,
    text_encoder: Artifact,
    autoencoder: Artifact,
    start: Artifact | None = None,
    texts: Artifact | None = None,
) -> Artifact:
    """The denoiser trained on latents and captions: ``model/`` with the averaged weights.

    Args:
        texts: states of the captions, where they were encoded beforehand.

    Raises:
        TrainingError: training failed, or the champion has another shape than the recipe.
    """
    section = ctx.recipe.train.denoiser
    seen = images_of(section.images, ctx.recipe.retrain.denoiser, start)
    _same_shape("denoiser", section, start)

    def build(draft: Draft) -> Outcome:
        from components.training.task_denoiser import DenoiserTask

        facts = json.loads(latents.path("latents.json").read_text())
        factor = side_of(dataset) // facts["size"]
        require_multiple(dataset, factor * section.downsampling, "denoiser")
        task = DenoiserTask(
            section, dataset.local(), latents.local(), text_encoder.local() / "model",
            text_encoder.local() / "tokenizer", facts["scaling"], facts["channels"], facts["size"], model_of(start),
            texts.local() if texts else None, sampled=ctx.recipe.train.captions == "sampled",
            autoencoder=autoencoder.local() / "model",
        )  # fmt: skip
        plan = plan_of(ctx, section, seen, _DENOISER, section.ema_decay, found[-1])
        return train_task(ctx, draft, task, plan, dataset)

    inputs = inputs_of(start, dataset=dataset, latents=latents, text_encoder=text_encoder, autoencoder=autoencoder)
    if texts:
        inputs = {**inputs, "text_states": texts}
    chosen = identity_of(ctx, section, seen, _DENOISER) | _captions_of(ctx)
    check_parts(latents, autoencoder, text_encoder, texts)
    found, check = preflight_of(ctx, "denoiser", dataset, start, section, latents, text_encoder)
    return run_stage(ctx, "denoiser", inputs, chosen, build, check=check)


def assemble_model(
    ctx: Context, dataset: Artifact, text_encoder: Artifact, autoencoder: Artifact, denoiser: Artifact
) -> Artifact:
    """The model: a diffusers folder that stock ``DiffusionPipeline.from_pretrained`` opens.

    Its evidence holds, for each training, images seen, steps, digest of the sample order and the loss curve.
    """

    def build(draft: Draft) -> Outcome:
        from components.models.autoencoder import load_autoencoder
        from components.models.denoiser import load_denoiser
        from components.models.pipeline import save_pipeline
        from components.models.samplers import make_scheduler
        from components.models.text_encoder import load_text_tower, load_tokenizer

        latents = ctx.store.by_digest("latents", denoiser.manifest.inputs["latents"])
        scaling = json.loads(latents.path("latents.json").read_text())["scaling"]
        chosen = denoiser.manifest.config  # what it was trained for decides how it is sampled
        save_pipeline(
            draft.dir,
            load_text_tower(text_encoder.local() / "model"),
            load_tokenizer(text_encoder.local() / "tokenizer"),
            load_autoencoder(autoencoder.local() / "model"),
            load_denoiser(denoiser.local() / "model"),
            scaling,
            make_scheduler(chosen["objective"], chosen["time_shift"], chosen["zero_terminal_snr"]),
        )
        stages = {"text_encoder": text_encoder, "autoencoder": autoencoder, "denoiser": denoiser}
        trainings = {
            name: {**a.manifest.evidence, **a.manifest.counts, "curve": json.loads(a.path("curve.json").read_text())}
            for name, a in stages.items()
            if "curve.json" in a.manifest.files  # else it was loaded, and trained by others
        }
        return Outcome(
            counts={"rows": dataset.manifest.counts.get("rows", 0)},
            evidence={"scaling": scaling, "trainings": trainings},
            circumstance={name: a.manifest.circumstance for name, a in stages.items()},
        )

    inputs = {"dataset": dataset, "text_encoder": text_encoder, "autoencoder": autoencoder, "denoiser": denoiser}
    return run_stage(ctx, "model", inputs, {}, build)


def train_task(
    ctx: Context,
    draft: Draft,
    task: Any,
    plan: Any,
    dataset: Artifact,
    measure: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Outcome:
    """Train, keep the weights as a model folder and the curve beside it; MLflow sees it while it runs.

    Args:
        task: see :class:`components.training.loop.Task`.
        plan: as :func:`plan_of` makes it.
        dataset: any artifact; the run is tagged with its digest.
        measure: what the finished model folder is worth, for the evidence; its numbers, and the values of its
            estimates, go to MLflow too.

    Raises:
        TrainingError: training failed.
        RegistryError: MLflow cannot be reached before or after the training.
    """
    from components.runtime.tracking import Tracker
    from components.training.following import RunListener, read_curve
    from components.training.measures import without_pace

    # asked first: a registry that is down should cost no training
    tracker = Tracker(ctx.registry_uri, ctx.recipe.name, ctx.home / "mlruns")
    tags = {"artifact": draft.identity, "dataset": dataset.digest}
    parent = ctx.recorder.parent() if ctx.recorder else None
    with tracker.run(f"train {task.name}", parent, tags, tracker.find_run(tags)) as run:
        listener = RunListener(run)
        run.log_params({"config": draft.config})
        run.set_tags({"workers": str(ctx.recipe.run.workers), "zero_stage": str(plan.zero_stage)})
        summary = run_training(task, plan, draft.state, ctx.recipe.run, listener)
        points = read_curve(draft.state / "curve.jsonl")
        listener.points(points)  # of a training that had ended when it was asked for again
        listener.finish()
        run.log_params({"order_digest": summary["order_digest"]})
        _save_model(task, draft, ctx.recipe.run)
        curve = without_pace(points)
        write_bytes(f"{draft.url}/curve.json", json.dumps(curve).encode())
        found = dict(measure(draft.dir / "model")) if measure else {}
        pace: dict[str, Any] = {k: summary[k] for k in ("images_per_second", "waiting_share", "mfu") if k in summary}
        values = {k: v.get("value") if isinstance(v, Mapping) else v for k, v in found.items()}
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
        whole = {f"mean_{k}": float(v) for k, v in pace.items()} | {"training_seconds": summary["seconds"]}
        run.log_metrics({**whole, **numbers}, step=summary["images"])
    return Outcome(
        counts={"images": summary["images"], "steps": summary["steps"]},
        evidence={"order_digest": summary["order_digest"], "final": curve[-1], **found},
        circumstance={
            "training_seconds": summary["seconds"], **pace, "workers": ctx.recipe.run.workers,
            "zero_stage": plan.zero_stage,
        },
    )  # fmt: skip


def _save_model(task: Any, draft: Draft, run: Run) -> None:
    from components.training.checkpoint import final_weights

    module = task.build()
    module.load_state_dict(final_weights(checkpoints_url(draft.state, run) or draft.state), strict=False)
    module.finished().save_pretrained(draft.dir / "model", safe_serialization=True)


def _captions_of(ctx: Context) -> dict[str, str]:
    """What a training on captions adds to its identity where it does not do as usual."""
    return {} if ctx.recipe.train.captions == "sampled" else {"captions": ctx.recipe.train.captions}


def _require_clip(source: Artifact) -> None:
    kind = source.manifest.evidence.get("kind")
    if kind != "clip":
        raise TrainingError(
            f"The text encoder {source.short} is a {kind}, which cannot be tuned with pictures",
            expected="a CLIP of both towers in train.text_encoder.source",
            remedy="name a CLIP, or set train.text_encoder.fine_tune=false",
        )


def _same_tokenizer(dataset: Artifact, start: Artifact | None) -> None:
    if start is None:
        return
    name = "tokenizer/tokenizer.json"
    if dataset.manifest.files.get(name) != start.manifest.files.get(name):
        raise TrainingError(
            f"The tokenizer of {dataset.short} is not that of {start.short}",
            expected="the vocabulary that the champion was trained with",
            remedy="prepare the new dataset together with the champion's, which carries the tokenizer over",
        )


def _same_shape(kind: str, section: TextEncoder | Autoencoder | Denoiser, start: Artifact | None) -> None:
    if start is None:
        return
    now, then, fields = section.identity(), start.manifest.config, type(section).model_fields
    keys = [k for k in _SHAPE[kind] if k in now]
    before = {k: then.get(k, fields[k].default) for k in keys}  # a key that is newer than the champion had its default
    changed = [f"{k} {before[k]} -> {now[k]}" for k in keys if now[k] != before[k]]
    if changed:
        raise TrainingError(
            f"The recipe's train.{kind} has another shape than {start.short}: {', '.join(changed)}",
            expected="the champion's shape, since training goes on from its weights",
            remedy="restore these values, or train from the beginning under another recipe name",
        )
