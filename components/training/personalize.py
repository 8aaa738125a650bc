"""Stages of personalization: pictures that a model draws of what it knows, and a LoRA for what it does not.

A subject's pictures are a dataset of their own (kind ``subject``), prepared like any other.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from components.contracts.errors import InputError
from components.contracts.recipe import Run
from components.runtime.cluster import ray_session
from components.runtime.pieces import run_pieces
from components.runtime.progress import Progress
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, record_of, write_bytes
from components.training import stages
from components.training.rules import check_adapter

_ADAPTER, _PRIOR = 14, 15  # added to the recipe's seed: every training has its own
_TOGETHER = 16  # pictures drawn at once
_SAFE = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})  # what is read of a folder: no pickles
_WEIGHTLESS = frozenset({"tokenizer/", "scheduler/"})
PRIOR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),  # the prompt
        ("seed", pa.int64()),
        ("pixels", pa.binary()),  # uint8 RGB, height*width*3, row major
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("split", pa.string()),  # "train"
    ]
)


@dataclass(frozen=True)
class Job:
    """What every part of a prior is drawn with, and where its file goes."""

    model: str  # diffusers folder
    target: str  # URL of the artifact
    steps: int
    guidance_scale: float


def draw_prior(ctx: Context, model: Artifact, folder: Path) -> Artifact:
    """Pictures that ``model`` draws of the prompts of ``adapter.prior``, in turn: ``data/*.parquet``.

    Ruiz et al. 2023, "DreamBooth", sec. 3.3: samples of the frozen model supervise it when it is trained on a subject.
    Seeds are fixed and every part is drawn as one batch, so the pictures are the same for any number of workers.

    Args:
        folder: of the diffusers pipeline in ``model``, as a local path.
    """
    section, protocol, seed = ctx.recipe.adapter, ctx.recipe.assess, ctx.recipe.seed * 1009 + _PRIOR
    config = {
        "prompts": list(section.prior), "images": section.prior_images, "steps": protocol.steps,
        "guidance_scale": protocol.guidance_scale, "seed": seed,
    }  # fmt: skip

    def build(draft: Draft) -> Outcome:
        job = Job(str(folder), draft.url, protocol.steps, protocol.guidance_scale)
        rows = _wanted(section.prior, section.prior_images, seed)
        parts = [rows[at : at + _TOGETHER] for at in range(0, len(rows), _TOGETHER)]
        pieces = [{"name": f"part-{i:05d}.parquet", "rows": part} for i, part in enumerate(parts)]
        _draw_all(pieces, job, ctx.recipe.run, len(rows))
        return Outcome(counts={"rows": len(rows)})

    return run_stage(ctx, "prior", {"model": model}, config, build)


def train_adapter(ctx: Context, model: Artifact, folder: Path, subject: Artifact, prior: Artifact | None) -> Artifact:
    """A LoRA on the denoiser of ``model``: ``model/pytorch_lora_weights.safetensors`` and ``curve.json``.

    Args:
        folder: of the diffusers pipeline in ``model``, as a local path.
        subject: dataset of the pictures. prior: of :func:`draw_prior`, or None.

    Raises:
        TrainingError: training failed, or the recipe asks for what an adapter cannot be trained with.
    """
    section: Any = ctx.recipe.adapter
    seed = _ADAPTER
    check_adapter(section, ctx.recipe.run)

    def build(draft: Draft) -> Outcome:
        from components.training.task_adapter import AdapterTask

        task = AdapterTask(section, folder, subject.local(), prior.local() if prior else None)
        outcome = stages.train_task(ctx, draft, task, stages.plan_of(ctx, section, section.images, seed), subject)
        outcome.counts["pictures"] = subject.manifest.counts["train"]
        return outcome

    inputs = {"model": model, "subject": subject, **({"prior": prior} if prior else {})}
    return run_stage(ctx, "adapter", inputs, stages.identity_of(ctx, section, section.images, seed), build)


def denoising_folder(model: Artifact) -> Path:
    """Local folder of the diffusers pipeline in a model artifact.

    Raises:
        InputError: it holds none: a family without a denoiser has nothing for a LoRA to go on.
    """
    found = [name for name in model.manifest.files if name.rpartition("/")[2] == "model_index.json"]
    if not found:
        raise InputError(
            f"{model.short} is no diffusion model",
            expected="a model with a denoiser, which a LoRA is trained on",
            remedy="choose another with --model, or train one with --set model.family=diffusion",
        )
    return model.local() / min(found, key=len).rpartition("/")[0]


def side_of_model(folder: Path) -> int:
    """Side of the pictures that the model in a diffusers folder draws, in pixels."""
    from components.models.autoencoder import Grid

    config = json.loads((part_of(folder) / "config.json").read_text(encoding="utf-8"))
    return int(config["sample_size"]) * Grid.of(folder / "vae").factor


def part_of(model: Path) -> Path:
    """Folder of the denoiser in a diffusers folder."""
    return model / ("unet" if (model / "unet").is_dir() else "transformer")


def adopt(ctx: Context, folder: Path) -> Artifact:
    """A diffusers folder that was not made here as an artifact (kind ``base``): a copy of what a generator reads.

    Raises:
        InputError: the folder is not such a model, or has weights only as pickles.
    """
    wanted = {f"{part_of(folder).name}/", "vae/", "text_encoder/", "tokenizer/", "scheduler/"}
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    names = {path.relative_to(folder).as_posix(): path for path in files}
    kept = {n: p for n, p in names.items() if n == "model_index.json" or n.partition("/")[0] + "/" in wanted}
    kept = {n: p for n, p in kept.items() if p.suffix in _SAFE}
    missing = sorted(part for part in {*wanted, "model_index.json"} if not any(n.startswith(part) for n in kept))
    weights = {n.partition("/")[0] for n in kept if n.endswith(".safetensors")}
    missing += [f"{part}*.safetensors" for part in sorted(wanted - _WEIGHTLESS) if part[:-1] not in weights]
    if missing:
        raise InputError(
            f"{folder} is no model to personalize: it lacks {', '.join(missing)}",
            expected="champion, a version's number, the folder of a model artifact, or a diffusers folder",
            remedy="check --model",
        )
    content = {name: record_of(LocalFileSystem(), str(path)).sha256 for name, path in kept.items()}

    def build(draft: Draft) -> Outcome:
        for name, path in kept.items():
            (draft.dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft.dir / name)
        return Outcome(circumstance={"from": str(folder.absolute())})

    return run_stage(ctx, "base", {}, {"files": content}, build)


def _wanted(prompts: Sequence[str], images: int, seed: int) -> list[dict[str, Any]]:
    """Prompts in turn, each picture with a seed of its own."""
    return [{"caption": prompts[i % len(prompts)], "seed": seed * 1_000_003 + i} for i in range(images)]


def draw_piece(piece: dict[str, Any], job: Job) -> dict[str, Any]:
    """Draw one part and write its file, unless a killed run left it; runs in a Ray worker."""
    target = f"{job.target}/data/{piece['name']}"
    fs, path = fsspec.core.url_to_fs(target)
    if fs.exists(path):  # files are written whole or not at all
        return {"rows": len(piece["rows"])}
    generator = _generator(job.model)
    prompts, seeds = [row["caption"] for row in piece["rows"]], [int(row["seed"]) for row in piece["rows"]]
    pictures = generator.generate(prompts, seeds, steps=job.steps, guidance_scale=job.guidance_scale)
    rows = []
    for prompt, seed, picture in zip(prompts, seeds, pictures, strict=True):
        name = hashlib.sha256(f"{prompt}\n{seed}".encode()).hexdigest()[:16]
        height, width = picture.shape[:2]
        rows.append(
            {"id": name, "caption": prompt, "seed": seed, "pixels": picture.tobytes(), "height": height,
             "width": width, "split": "train"}
        )  # fmt: skip
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=PRIOR_SCHEMA), out, compression="zstd")
    write_bytes(target, out.getvalue())
    return {"rows": len(rows)}


@lru_cache(maxsize=1)
def _generator(folder: str) -> Any:
    """The model, loaded once a worker process."""
    import torch

    from components.models.pipeline import Generator

    torch.set_num_threads(1)  # sums in one order, whatever the machine
    return Generator.load(Path(folder))


def _draw_all(pieces: list[dict[str, Any]], job: Job, run: Run, total: int) -> None:
    progress, done = Progress("draw prior", total, "img"), 0
    with ray_session(run):
        for result in run_pieces(pieces, partial(draw_piece, job=job), run, run.workers, as_worker=True):
            done += int(result["rows"])
            progress.update(done)
    progress.close()
