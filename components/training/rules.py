"""What a training may not be asked for: rules that need the recipe, and the artifacts it starts from, but no torch."""

from __future__ import annotations

import json
from pathlib import Path

from components.contracts.errors import TrainingError
from components.contracts.recipe import Adapter, Recipe, Run
from components.runtime.storage import Artifact

COMPARES = ("text_encoder",)  # losses that compare the samples of a batch, which therefore is not cut


def check_recipe(recipe: Recipe) -> None:
    """Refuse what a recipe asks for and cannot have, whatever the data.

    Raises:
        TrainingError: guidance without caption dropout, best checkpoints without a held-out loss, or means that do
            not go together.
    """
    guidance = max(recipe.assess.guidance_scale, recipe.serve.default_guidance)
    if recipe.model.family == "diffusion" and guidance > 1 and recipe.train.denoiser.caption_dropout == 0:
        raise TrainingError(
            f"Guidance of {guidance:g} is asked for, but train.denoiser.caption_dropout is 0",
            expected="some captions dropped in training: guidance leads away from what the model draws without one",
            remedy="set train.denoiser.caption_dropout=0.1, or assess.guidance_scale=1 and serve.default_guidance=1",
        )
    if recipe.run.keep_best and not recipe.train.validation_points:
        raise TrainingError(
            f"run.keep_best={recipe.run.keep_best} with train.validation_points=0",
            expected="a held-out loss, by which checkpoints are compared",
            remedy="set train.validation_points=5, or run.keep_best=0",
        )
    check_means(recipe.run)


def check_means(run: Run) -> None:
    """Refuse means of training that do not go together.

    Raises:
        TrainingError: see above.
    """
    if run.offload == "cpu" and run.zero_stage == 0:
        raise TrainingError(
            "run.offload=cpu with run.zero_stage=0",
            expected="ZeRO stage 1, 2 or 3: stage 0 keeps no part of its own that could be moved",
            remedy="set run.zero_stage=1",
        )


def check_batch(kind: str, batch_size: int, run: Run) -> int:
    """Samples of one worker in one pass.

    Raises:
        TrainingError: the batch cannot be shared by the workers, or by the fewest that an elastic training may have.
    """
    cuts = 1 if kind in COMPARES else run.accumulate
    for workers in range(run.min_workers or run.workers, run.workers + 1):
        if batch_size % (workers * cuts):
            part = f"{workers} workers" + (f" of {cuts} passes each" if cuts > 1 else "")
            raise TrainingError(
                f"The batch_size {batch_size} of the {kind.replace('_', ' ')} cannot be shared equally by {part}",
                expected=f"a multiple of {workers * cuts}",
                remedy=f"change the section's batch_size to {-(-batch_size // (workers * cuts)) * workers * cuts}, "
                "or run.workers, run.min_workers or run.accumulate",
            )
    return batch_size // ((run.min_workers or run.workers) * cuts)


def check_rows(kind: str, rows: int, batch_size: int) -> None:
    """Refuse a dataset that does not fill one batch.

    Raises:
        TrainingError: it does not.
    """
    if rows < batch_size:
        raise TrainingError(
            f"The dataset has {rows} pictures to train on, a batch of the {kind.replace('_', ' ')} has {batch_size}",
            expected="at least one whole batch of different pictures",
            remedy=f"collect more, or lower train.{kind}.batch_size to {max(1, rows)} or less",
        )


def check_adapter(adapter: Adapter, run: Run) -> None:
    """Refuse what a LoRA cannot be trained with. Every ZeRO stage trains one: the frozen rest is only cut by stage 3.

    Raises:
        TrainingError: see :func:`check_means` and :func:`check_batch`.
    """
    check_means(run)
    check_batch("adapter", adapter.batch_size, run)
    if run.keep_best:
        raise TrainingError(
            f"run.keep_best={run.keep_best} for an adapter, which has no held-out pictures",
            expected="run.keep_best=0: there is no held-out loss to compare its checkpoints by",
            remedy="set run.keep_best=0; the last checkpoint is the adapter",
        )


def require_full_precision(folder: Path, what: str) -> None:
    """Refuse weights to train on that are stored in fewer than 32 bits.

    Small steps of the optimiser are lost in bf16's eight bits of precision: stored so, weights no longer follow them.

    Args:
        folder: of safetensors files. what: whose weights, for the message.

    Raises:
        TrainingError: see above.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        kinds = {str(v["dtype"]) for k, v in header.items() if k != "__metadata__"}
        if low := sorted(k for k in kinds if k in ("BF16", "F16") or k.startswith("F8")):
            raise TrainingError(
                f"The weights of {what} in {path} are stored as {', '.join(low)}",
                expected="F32, which training keeps its weights in; bf16 is for computing only",
                remedy="save the model in fp32 first, with `.float()` before `save_pretrained`",
            )


def check_parts(latents: Artifact, autoencoder: Artifact, text_encoder: Artifact, texts: Artifact | None) -> None:
    """Refuse latents or text states that another autoencoder or text encoder made.

    Raises:
        TrainingError: see above.
    """
    pairs = [("latents", latents, "autoencoder", autoencoder)]
    if texts is not None:
        pairs.append(("text states", texts, "text_encoder", text_encoder))
    for what, made, role, part in pairs:
        if made.manifest.inputs[role] != part.digest:
            raise TrainingError(
                f"The {what} {made.short} are not of {part.short}",
                expected=f"the {what} that this {role.replace('_', ' ')} makes",
                remedy="encode them again with it",
            )
    shape = json.loads((autoencoder.local() / "model" / "config.json").read_text())
    has = json.loads(latents.path("latents.json").read_text())["channels"]
    if has != shape["latent_channels"]:
        raise TrainingError(
            f"The latents have {has} channels, the autoencoder makes {shape['latent_channels']}",
            expected="the same number",
            remedy="encode the latents again",
        )
