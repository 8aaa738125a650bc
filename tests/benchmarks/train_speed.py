"""Four figures of the training step, from runs that take turns:

* ours as the stage trains, through Ray Train, DeepSpeed and MLflow, latents and text states made beforehand: one worker
  of two threads, one worker of one thread, and two of those
* the rival, one process of two threads, as its script runs
* the same task as ours in plain PyTorch, one process of one thread

Of every run the first step is left out, in which kernels are chosen.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Row, limit, paired
from tests.benchmarks.train_setup import BATCH, Parts, cpu_session, make_parts, process

STEPS = 24
SIDES = ("ours", "rival", "one", "bare", "two")
RIVAL = "diffusers' train_text_to_image, encoding online"
FIGURES = (
    "img/s of a latent diffusion step", "overhead of Ray, DeepSpeed and tracking", "share of time waiting for data",
    "weak scaling from 1 to 2 workers",
)  # fmt: skip


def rows(runs: int = 5) -> list[Row]:
    """The four rows."""
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        root = Path(name)
        with cpu_session():
            parts = make_parts(root)
            model = _stock_folder(parts, root / "stock")
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for turn in range(runs):
                found["ours"].append(_ours(parts, turn, threads=2))
                found["rival"].append(_rival(model, parts))
                found["one"].append(_ours(parts, 100 + turn))
                found["bare"].append(_bare(parts, turn, root))
                found["two"].append(_ours(parts, 200 + turn, workers=2))
                speeds = {side: round(values[-1]["images_per_second"], 1) for side, values in found.items()}
                print(f"  run {turn + 1} of {runs}: {speeds} img/s", flush=True)
    return _judged(found)


def _judged(found: dict[str, list[dict[str, Any]]]) -> list[Row]:
    speed = {side: [run["images_per_second"] for run in runs] for side, runs in found.items()}
    from components.runtime.precision import name_of

    precision = name_of("cpu")
    starting = statistics.median(run["starting"] for run in found["one"])
    over = [100 * (bare / ours - 1) for bare, ours in zip(speed["bare"], speed["one"], strict=True)]
    waited = [100 * run["waiting_share"] for run in found["ours"]]
    scaled = [two / (2 * one) for two, one in zip(speed["two"], speed["one"], strict=True)]
    spent = statistics.median(run["processor_seconds"] for run in found["rival"]) / ((STEPS - 1) * BATCH)
    bare = statistics.median(run["processor_seconds"] for run in found["bare"]) / ((STEPS - 1) * BATCH)
    return [
        paired(
            FIGURES[0], "img/s", speed["ours"], RIVAL, speed["rival"], 1.5,
            note=f"U-Net of blocks 96-192 on 8x8x4 latents, batch {BATCH}, {precision}, AdamW, moving average, {STEPS} "
            "steps a run, one process of two threads on both sides, ours by Ray Train, DeepSpeed and MLflow. "
            f"Processor time a picture: {1000 * spent:.1f} ms of the rival, {1000 * bare:.1f} ms of the same step of "
            "ours in plain PyTorch on one thread; weights and arithmetic of the U-Net are the same on both sides.",
        ),
        limit(
            FIGURES[1], "%", over, 5.0, "<=", limit_name="the same task in plain PyTorch",
            note=f"one process of one thread, batch {BATCH}, {STEPS} steps a run: "
            f"{_middle(speed['one'])} img/s against {_middle(speed['bare'])}. Starting the worker before the first "
            f"step, and checkpoint and manifest after the last, take {starting:.1f} s a training and are not in it.",
        ),
        limit(FIGURES[2], "%", waited, 2.0, "<=", note="of the first row's runs, as each training itself reports it."),
        limit(
            FIGURES[3], "of ideal", scaled, 0.9, limit_name="ideal",
            note=f"batch {BATCH} a worker, one thread each: {_middle(speed['one'])} and {_middle(speed['two'])} img/s.",
        ),
    ]  # fmt: skip


def _ours(parts: Parts, seed: int, **kwargs: Any) -> dict[str, Any]:
    """What one training by the stage reports, and the seconds of the stage outside of the loop."""
    made = parts.train(parts.context(steps=STEPS, seed=seed, **kwargs))
    facts = made.manifest.circumstance
    return {**facts, "starting": facts["seconds"] - facts["training_seconds"]}


def _bare(parts: Parts, turn: int, root: Path) -> dict[str, Any]:
    """The training that the stage would make, in plain PyTorch (:mod:`tests.benchmarks.train_worker`)."""
    # another seed than those of the stage's runs, whose artifacts are there
    job = parts.job(parts.context(steps=STEPS, seed=1000 + turn), root / "job.pickle")
    return process("tests.benchmarks.train_worker", "bare", str(job))


def _rival(model: Path, parts: Parts) -> dict[str, Any]:
    from components.runtime.precision import name_of

    sizes = (str(BATCH), str(STEPS), name_of("cpu"))
    return process("tests.benchmarks.train_rival", str(model), str(parts.dataset.local()), *sizes, threads=2)


def _stock_folder(parts: Parts, folder: Path) -> Path:
    """The same networks in folders that the rival opens: unet, vae, text_encoder, tokenizer."""
    from components.models.denoiser import make_denoiser
    from components.models.text_encoder import load_clip, text_tower

    section = parts.context().recipe.train.denoiser
    make_denoiser(section, 4, 8, 128).save_pretrained(folder / "unet")
    text_tower(load_clip(parts.text_encoder.local() / "model")).save_pretrained(folder / "text_encoder")
    shutil.copytree(parts.autoencoder.local() / "model", folder / "vae")
    shutil.copytree(parts.dataset.local() / "tokenizer", folder / "tokenizer")
    return folder


def _middle(values: list[float]) -> str:
    return f"{statistics.median(values):.1f}"
