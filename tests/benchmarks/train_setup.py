"""What the training benchmarks train: small parts of the embedded world, made once a call by the product's stages.

The networks are those of the first measurements: a U-Net of blocks 96-192 on latents of 8 x 8 x 4, an AutoencoderKL
of blocks 32-64-64 and a CLIP text tower of width 128, for pictures of 32 pixels. Text encoder and autoencoder get one
step: how good they are does not change what a step of the denoiser costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BATCH = 64  # of a worker
ROWS = 1536
LIMIT_S = 900  # of one process


def tree(
    root: Path, workers: int = 1, zero_stage: int = 1, steps: int = 24, seed: int = 0, threads: int = 1
) -> dict[str, Any]:  # fmt: skip
    """The recipe of one training, with AdamW alone, as the rival has it.

    Sample sheets are left out to save time: measuring is no part of the pace that a training reports.
    """
    return {
        "name": "bench-train",
        "seed": seed,
        "prepare": {"max_tokens": 32, "image_size": 32},
        "train": {
            "text_encoder": {"images": 256, "batch_size": 256},
            "autoencoder": {"channels": [32, 64, 64], "images": 16},
            "denoiser": {
                "channels": [96, 192], "cross_attention": [False, True], "muon_rate": 0.0,
                "batch_size": BATCH * workers, "images": BATCH * workers * steps,
            },
        },
        "run": {
            "root": str(root), "workers": workers, "threads_per_worker": threads, "zero_stage": zero_stage,
            "checkpoint_every_s": 1e6, "object_store_mb": 256, "sheet_images": 0,
        },
    }  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Artifacts that every measured training starts from."""

    root: Path
    dataset: Any
    text_encoder: Any
    autoencoder: Any
    latents: Any

    def context(self, **kwargs: Any) -> Any:
        """The context of :func:`tree`."""
        from components.runtime.recipes import parse_recipe
        from components.runtime.stage import Context

        return Context.of(parse_recipe(tree(self.root, **kwargs), "bench-train"))

    def train(self, ctx: Any) -> Any:
        """The denoiser's artifact, trained as ``atelier train`` does: Ray Train, DeepSpeed, MLflow."""
        from components.training import stages

        return stages.train_denoiser(ctx, self.dataset, self.latents, self.text_encoder, self.autoencoder)

    def job(self, ctx: Any, path: Path) -> Path:
        """A file with the task and the plan that :meth:`train` would train, for a process without Ray."""
        from components.training import stages

        real: Callable[..., Any] = stages.run_training

        def caught(task: Any, plan: Any, *_: Any, **__: Any) -> Any:
            path.write_bytes(pickle.dumps((task, plan)))
            raise _CaughtError

        stages.run_training = caught
        try:
            self.train(ctx)
        except _CaughtError:
            return path
        finally:
            stages.run_training = real
        raise AssertionError("the stage was done already: nothing to catch")


class _CaughtError(Exception):
    pass


@contextlib.contextmanager
def cpu_session() -> Iterator[None]:
    """Ray, and processes started in the block, on the processor alone, also where there is a GPU."""
    from components.contracts.recipe import Run
    from components.runtime.cluster import ray_session

    chosen = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    before = {key: os.environ.get(key) for key in chosen}
    os.environ.update(chosen)
    try:
        with ray_session(Run(object_store_mb=256)):
            yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def make_parts(root: Path) -> Parts:
    """Dataset, text encoder, autoencoder and latents below ``root``; Ray is started and left to the caller's block."""
    from components.contracts.recipe import Recipe
    from components.data.world import WorldSpec
    from components.runtime.stage import Context
    from components.training import stages
    from components.training.latents import encode_latents
    from tests.components.training.datasets import make_dataset

    ctx = Context.of(Recipe.model_validate(tree(root)))
    dataset, _ = make_dataset(ctx.store, WorldSpec(image_size=32), ROWS, max_tokens=32)
    text_encoder = stages.train_text_encoder(ctx, dataset)
    autoencoder = stages.train_autoencoder(ctx, dataset)
    return Parts(root, dataset, text_encoder, autoencoder, encode_latents(ctx, dataset, autoencoder))


def process(module: str, *arguments: str, threads: int = 1, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run ``python -m module … OUT`` to its end and return the JSON that it left in OUT."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        running = start(module, *arguments, str(out), threads=threads, env=env)
        finish([running])
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def start(module: str, *arguments: str, threads: int = 1, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start ``python -m module …`` in the project's root."""
    from components.runtime.cluster import quiet_environment

    surroundings = {**quiet_environment(), **os.environ, "OMP_NUM_THREADS": str(threads), **(env or {})}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=surroundings, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(running: list[subprocess.Popen[str]]) -> None:
    """Wait for processes; when one fails or takes too long the others are stopped.

    Raises:
        RuntimeError: with the end of what the process said.
    """
    try:
        for one in running:
            said = one.communicate(timeout=LIMIT_S)[1]
            if one.returncode:
                raise RuntimeError(f"{' '.join(map(str, one.args[1:3]))} failed: {said[-2000:]}")  # type: ignore[index]
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
                one.wait()
