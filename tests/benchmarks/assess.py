"""``make bench-assess``: pictures a minute of an assessment's drawing, beside the pipeline called prompt by prompt.

    python -m tests.benchmarks.assess [RUNS]

The model is of the demo's shape with random weights: a U-Net of blocks 96-192 on latents of 8 x 8 x 4, for pictures of
32 pixels; speed does not depend on what the weights are. Ours is what ``atelier assess`` does with its prompts: chunks
of ``assess.batch_size`` on two Ray actors, drawn, looked at and graded. The rival is the stock
``StableDiffusionPipeline`` of the same folder on the same two cores, called with one prompt after the other, which
draws and does nothing else. Start of Ray and loading are left out on both sides.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from components.contracts.recipe import Autoencoder, Denoiser, Recipe, Run, TextEncoder
from components.data.world import WorldSpec, phrasings, sample_scene
from components.evaluation.generation import Chunk, Worker
from components.evaluation.judge import make_judge
from components.runtime.cluster import ray_session
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome
from tests.benchmarks.harness import Row, paired, write

PROMPTS, ALONE = 128, 16  # of a run of ours, and of the rival, whose pace does not depend on how many there are
BATCH, STEPS, GUIDANCE = 64, 16, 2.0  # assess.batch_size, steps and guidance_scale of the recipe by default
FIGURE = "Pictures a minute of an assessment"
PACKAGES = ("torch", "ray", "diffusers", "transformers")
_ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> int:
    """Measure, and write ``docs/benchmarks/assess.{json,md}``; with ``rival FOLDER PROMPTS`` the rival alone."""
    if arguments[:1] == ["rival"]:
        print(rival_here(Path(arguments[1]), int(arguments[2])))
        return 0
    write("assess", "Assessing", rows(int(arguments[0]) if arguments else 5), PACKAGES)
    return 0


def rows(runs: int, prompts: int = PROMPTS, alone: int = ALONE) -> list[Row]:
    """The table; sides alternate, ours first."""
    import numpy as np

    mine, theirs = [], []
    with tempfile.TemporaryDirectory(prefix="atelier-bench-assess-") as folder:
        ctx = Context.of(Recipe.model_validate({"name": "bench", "run": {"root": folder, "object_store_mb": 256}}))
        rng = np.random.default_rng(0)
        asked = list(dict.fromkeys(phrasings(sample_scene(rng, WorldSpec()))[0] for _ in range(4 * prompts)))[:prompts]
        model, judge = _artifacts(ctx, asked)
        with ray_session(ctx.recipe.run):
            workers = Workers(model, judge, ctx.recipe.run)
            workers.seconds(asked[:BATCH])  # loads
            for run in range(runs):
                mine.append(60 * len(asked) / workers.seconds(asked))
                theirs.append(60 / _rival(model.local(), alone))
                print(f"  run {run + 1} of {runs}: {mine[-1]:.0f} against {theirs[-1]:.0f} a minute", flush=True)
    note = (
        f"32 pixels, {STEPS} steps, guidance {GUIDANCE:g}; ours in batches of {BATCH} on 2 actors, with embeddings and "
        f"grades of {prompts} pictures; the rival on the same cores, {alone} pictures"
    )
    return [paired(FIGURE, "pictures/min", mine, "the pipeline prompt by prompt", theirs, 3.0, note=note)]


class Workers:
    """The product's workers, held on Ray actors so that only their work is timed."""

    def __init__(self, model: Artifact, judge: Artifact, run: Run) -> None:
        import ray

        remote: Any = ray.remote(num_cpus=1)(Worker)
        self._workers = [remote.remote(model, judge, run.threads_per_worker) for _ in range(2)]

    def seconds(self, prompts: list[str]) -> float:
        """Wall time of drawing and judging these prompts."""
        import ray

        chunks = [
            Chunk(
                "known", start, tuple(prompts[start : start + BATCH]), tuple(range(start, start + BATCH))[: len(part)]
            )
            for start in range(0, len(prompts), BATCH)
            if (part := prompts[start : start + BATCH])
        ]
        begun = time.perf_counter()
        waiting = [w.work.remote(c) for w, c in zip(itertools.cycle(self._workers), chunks, strict=False)]
        if len(chunks) == 1:  # so that both load
            waiting.append(self._workers[1].work.remote(chunks[0]))
        ray.get(waiting)
        return time.perf_counter() - begun


def rival_here(folder: Path, prompts: int) -> float:
    """Seconds a picture of the stock pipeline, one call a prompt, after one that warms up."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def draw(number: int) -> None:
        generator = torch.Generator("cpu").manual_seed(number)
        pipeline("a small red circle", num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator)

    draw(0)
    begun = time.perf_counter()
    for number in range(prompts):
        draw(number)
    return (time.perf_counter() - begun) / prompts


def _rival(folder: Path, prompts: int) -> float:
    """:func:`rival_here` in a process of its own, with all cores to itself: ours are idle meanwhile."""
    command = [sys.executable, "-m", "tests.benchmarks.assess", "rival", str(folder), str(prompts)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the rival failed: {done.stderr[-500:]}")
    return float(done.stdout.split()[-1])


def _artifacts(ctx: Context, prompts: list[str]) -> tuple[Artifact, Artifact]:
    """A model of the demo's shape, and a judge with a CLIP of its shape."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from components.contracts.records import SAMPLE_SCHEMA
    from components.models.autoencoder import make_autoencoder
    from components.models.denoiser import make_denoiser
    from components.models.pipeline import save_pipeline
    from components.models.text_encoder import load_tokenizer, make_clip, text_tower
    from tests.components.training.datasets import write_tokenizer

    torch.manual_seed(0)
    root = ctx.home / "made"
    write_tokenizer(root / "tokenizer", prompts, 512, 32)
    tokenizer = load_tokenizer(root / "tokenizer")
    clip = make_clip(TextEncoder(), tokenizer, 32)
    config = Denoiser(channels=(96, 192), cross_attention=(False, True))
    denoiser = make_denoiser(config, 4, 8, TextEncoder().width)
    autoencoder = make_autoencoder(Autoencoder(channels=(32, 64, 64)), 32)
    save_pipeline(root / "model", text_tower(clip), tokenizer, autoencoder, denoiser, 1.0)
    clip.save_pretrained(root / "clip" / "model")
    tokenizer.save_pretrained(root / "clip" / "tokenizer")
    rng = np.random.default_rng(1)
    rows = [
        {
            "id": f"{i:016x}", "url": f"http://x/{i}", "caption": f"picture {i}", "tokens": [0], "height": 32,
            "pixels": rng.integers(0, 256, 32 * 32 * 3, dtype=np.uint8).tobytes(), "width": 32, "bucket": "32x32",
            "cluster": f"{i:016x}", "split": "holdout" if i % 2 else "train", "source": 0,
        }
        for i in range(64)
    ]  # fmt: skip
    (root / "dataset" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), root / "dataset" / "data" / "part-00000.parquet")

    def kept(kind: str, folder: Path) -> Artifact:
        def build(draft: Draft) -> Outcome:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                target = draft.dir / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            return Outcome()

        return run_stage(ctx, kind, {}, {}, build)

    settings = {"steps": STEPS, "guidance_scale": GUIDANCE, "batch_size": BATCH}
    protocol = ctx.recipe.assess.model_copy(update=settings)
    judge = make_judge(
        ctx, kept("judge_clip", root / "clip"), kept("dataset", root / "dataset"), {"known": prompts}, protocol
    )
    return kept("model", root / "model"), judge


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
