"""The stages of training: each makes one artifact from a dataset and the artifacts before it.

A retrain passes ``start``, the champion's artifact of the same kind: training goes on from its weights, for
``recipe.retrain``'s share of the images.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.contracts.errors import TrainingError
from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes
from components.training.latents import require_multiple, side_of
from components.training.shell import run_training

_TEXT, _AUTOENCODER, _DENOISER = 11, 12, 13  # added to the recipe's seed: every training has its own
_SHAPE = {  # what a champion and its successor must share
    "text_encoder": ("width", "layers", "image_layers", "heads", "patch"),
    "autoencoder": ("channels", "layers_per_block", "norm_groups", "attention", "latent_channels"),
    "denoiser": ("channels", "layers_per_block", "norm_groups", "heads", "cross_attention", "objective"),
}


def train_text_encoder(
    ctx: Context,
    dataset: Artifact,
    start: Artifact | None = None,
    kind: str = "text_encoder",
    seed_offset: int = 0,
    config: TextEncoder | None = None,
    images: int | None = None,
) -> Artifact:
    """CLIP trained on the dataset's pictures and captions: ``model/`` (CLIPModel) and ``tokenizer/``.

    Args:
        kind: of the artifact, e.g. ``"judge_clip"`` for the judge's own eyes.
        seed_offset: added to the seed, for a CLIP that is independent of the model's.
        config: in place of the recipe's section.
        images: images seen, in place of the section's.

    Raises:
        TrainingError: training failed, or the champion's tokenizer is another one.
    """
    section = config or ctx.recipe.train.text_encoder
    seen = images or _images(section.images, ctx.recipe.retrain.text_encoder, start)
    _same_tokenizer(dataset, start)

    def build(draft: Draft) -> Outcome:
        from components.training.task_text_encoder import TextEncoderTask

        task = TextEncoderTask(section, dataset.local(), side_of(dataset), _model_of(start), name=_words(kind))
        outcome = _train(ctx, draft, task, _plan(ctx, section, seen, _TEXT + seed_offset), dataset)
        shutil.copytree(dataset.local() / "tokenizer", draft.dir / "tokenizer", dirs_exist_ok=True)
        return outcome

    chosen = _identity(ctx, section, seen, _TEXT + seed_offset)
    _same_shape("text_encoder", section, start)
    return run_stage(ctx, kind, _inputs(start, dataset=dataset), chosen, build)


def train_autoencoder(ctx: Context, dataset: Artifact, start: Artifact | None = None) -> Artifact:
    """AutoencoderKL trained on the dataset's pictures: ``model/``.

    Raises:
        TrainingError: training failed, or the champion has another shape than the recipe.
    """
    section = ctx.recipe.train.autoencoder
    seen = _images(section.images, ctx.recipe.retrain.autoencoder, start)
    _same_shape("autoencoder", section, start)

    def build(draft: Draft) -> Outcome:
        from components.training.task_autoencoder import AutoencoderTask

        require_multiple(dataset, 2 ** (len(section.channels) - 1), "autoencoder")
        task = AutoencoderTask(section, dataset.local(), side_of(dataset), _model_of(start))
        return _train(ctx, draft, task, _plan(ctx, section, seen, _AUTOENCODER), dataset)

    chosen = _identity(ctx, section, seen, _AUTOENCODER)
    return run_stage(ctx, "autoencoder", _inputs(start, dataset=dataset), chosen, build)


def train_denoiser(
    ctx: Context,
    dataset: Artifact,
    latents: Artifact,
    text_encoder: Artifact,
    autoencoder: Artifact,
    start: Artifact | None = None,
    texts: Artifact | None = None,
) -> Artifact:
    """The denoiser trained by flow matching on latents and captions: ``model/`` with the averaged weights.

    Args:
        texts: states of the captions, where they were encoded beforehand.

    Raises:
        TrainingError: training failed, or the champion has another shape than the recipe.
    """
    section = ctx.recipe.train.denoiser
    seen = _images(section.images, ctx.recipe.retrain.denoiser, start)
    _same_shape("denoiser", section, start)

    def build(draft: Draft) -> Outcome:
        from components.training.task_denoiser import DenoiserTask

        facts = json.loads(latents.path("latents.json").read_text())
        factor = side_of(dataset) // facts["size"]
        require_multiple(dataset, factor * 2 ** (len(section.channels) - 1), "denoiser")
        task = DenoiserTask(
            section, dataset.local(), latents.local(), text_encoder.local() / "model",
            text_encoder.local() / "tokenizer", facts["scaling"], facts["channels"], facts["size"], _model_of(start),
            texts.local() if texts else None,
        )  # fmt: skip
        return _train(ctx, draft, task, _plan(ctx, section, seen, _DENOISER, section.ema_decay), dataset)

    inputs = _inputs(start, dataset=dataset, latents=latents, text_encoder=text_encoder, autoencoder=autoencoder)
    if texts:
        inputs = {**inputs, "text_states": texts}
    return run_stage(ctx, "denoiser", inputs, _identity(ctx, section, seen, _DENOISER), build)


def assemble_model(
    ctx: Context, dataset: Artifact, text_encoder: Artifact, autoencoder: Artifact, denoiser: Artifact
) -> Artifact:
    """The model: a diffusers folder that stock ``DiffusionPipeline.from_pretrained`` opens.

    Its evidence holds, for each training, images seen, steps, digest of the sample order and the loss curve.
    """

    def build(draft: Draft) -> Outcome:
        from components.models.autoencoder import load_autoencoder
        from components.models.denoiser import load_denoiser
        from components.models.pipeline import make_scheduler, save_pipeline
        from components.models.text_encoder import load_clip, load_tokenizer

        latents = ctx.store.by_digest("latents", denoiser.manifest.inputs["latents"])
        scaling = json.loads(latents.path("latents.json").read_text())["scaling"]
        chosen = denoiser.manifest.config  # what it was trained for decides how it is sampled
        save_pipeline(
            draft.dir,
            load_clip(text_encoder.local() / "model"),
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
        }
        return Outcome(
            counts={"rows": dataset.manifest.counts.get("rows", 0)},
            evidence={"scaling": scaling, "trainings": trainings},
            circumstance={name: a.manifest.circumstance for name, a in stages.items()},
        )

    inputs = {"dataset": dataset, "text_encoder": text_encoder, "autoencoder": autoencoder, "denoiser": denoiser}
    return run_stage(ctx, "model", inputs, {}, build)


def _train(ctx: Context, draft: Draft, task: Any, plan: Any, dataset: Artifact) -> Outcome:
    """Train, keep the weights as a model folder and the curve beside it, and log both to MLflow."""
    from components.runtime.tracking import Tracker

    # asked first: a registry that is down should cost no training
    tracker = Tracker(ctx.registry_uri, ctx.recipe.name, ctx.home / "mlruns")
    summary = run_training(task, plan, draft.state, ctx.recipe.run)
    _save_model(task, draft)
    points = [json.loads(line) for line in (draft.state / "curve.jsonl").read_text().splitlines()]
    curve = [{k: v for k, v in point.items() if k != "seconds"} for point in points]
    write_bytes(f"{draft.url}/curve.json", json.dumps(curve).encode())
    pace = {k: summary[k] for k in ("images_per_second", "seconds", "waiting_share")}
    with tracker.run(f"train {task.name}", tags={"artifact": draft.identity, "dataset": dataset.digest}) as run:
        run.log_params({"config": draft.config, "order_digest": summary["order_digest"]})
        for point in [*curve[: -1 : max(1, len(curve) // 20)], curve[-1]]:
            run.log_metrics({k: v for k, v in point.items() if k != "images"}, step=int(point["images"]))
        run.log_metrics(pace, step=summary["images"])
    return Outcome(
        counts={"images": summary["images"], "steps": summary["steps"]},
        evidence={"order_digest": summary["order_digest"], "final": curve[-1]},
        circumstance={
            "training_seconds": pace["seconds"], "images_per_second": pace["images_per_second"],
            "waiting_share": pace["waiting_share"], "workers": ctx.recipe.run.workers,
            "zero_stage": ctx.recipe.run.zero_stage,
        },
    )  # fmt: skip


def _save_model(task: Any, draft: Draft) -> None:
    from safetensors.torch import load_file

    from components.training.checkpoint import AVERAGE, WEIGHTS, latest

    found = latest(draft.state)
    if found is None:
        raise TrainingError("Training ended without a checkpoint", remedy="run the same command again")
    module = task.build()
    average = found[1] / AVERAGE
    module.load_state_dict(load_file(average if average.exists() else found[1] / WEIGHTS), strict=False)
    module.finished().save_pretrained(draft.dir / "model", safe_serialization=True)


def _plan(ctx: Context, section: Any, images: int, seed: int, ema_decay: float | None = None) -> Any:
    from components.training.engine import Optimiser
    from components.training.loop import Plan

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
        zero_stage=run.zero_stage,
        checkpoint_every_s=run.checkpoint_every_s,
    )


def _identity(ctx: Context, section: TextEncoder | Autoencoder | Denoiser, images: int, seed: int) -> dict[str, Any]:
    train = ctx.recipe.train
    return {
        **section.identity(),
        "images": images,
        "seed": ctx.recipe.seed * 1009 + seed,
        **{name: getattr(train, name) for name in ("warmup", "cooldown", "precision", "gradient_clip")},
    }


def _images(images: int, share: float, start: Artifact | None) -> int:
    return images if start is None else max(1, math.ceil(images * share))


def _inputs(start: Artifact | None, **inputs: Artifact) -> Mapping[str, Artifact]:
    return inputs if start is None else {**inputs, "start": start}


def _model_of(start: Artifact | None) -> Path | None:
    return start.local() / "model" if start else None


def _words(kind: str) -> str:
    return kind.replace("_", " ")


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
    now, then = section.identity(), start.manifest.config
    changed = [f"{k} {then.get(k)} -> {now[k]}" for k in _SHAPE[kind] if now[k] != then.get(k)]
    if changed:
        raise TrainingError(
            f"The recipe's train.{kind} has another shape than {start.short}: {', '.join(changed)}",
            expected="the champion's shape, since training goes on from its weights",
            remedy="restore these values, or train from the beginning under another recipe name",
        )
