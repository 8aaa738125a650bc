"""``make ladder``: cnn, vae, gan and diffusion at equal wall time on the same pictures, text encoder and judge.

    MINUTES=20 python -m tests.benchmarks.ladder

For each data set the text encoder and the judge are trained once. Then every family is given ``MINUTES`` of training:
its pace is measured in a short pilot, and the images that fit are trained on. ``families`` and ``ablation`` of the
command line choose a part. Results are kept part by part in ``runs/ladder``: a run that was stopped goes on, and
``docs/benchmarks/ladder/`` is written from whatever there is at the end.

Environment: MINUTES (20) a family; ENCODER_IMAGES (60000) and JUDGE_IMAGES (16000) for the two CLIPs; PROMPTS (512) of
the assessment; PICTURES (2700) of the embedded world; DATA (world,grocery); LADDER_ROOT (runs/ladder).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.contracts.errors import AtelierError
from components.contracts.recipe import Family, Recipe
from components.evaluation.assess import assess
from components.runtime.recipes import parse_recipe
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.assess import judge
from pipelines.prepare import prepare
from pipelines.train import train
from tests.benchmarks import ladder_report as report

FAMILIES: tuple[Family, ...] = ("cnn", "vae", "gan", "diffusion")
GROCERY = Path("../shared/data/grocery_photos.parquet")
_LATENTS = 0.1  # share of diffusion's time that encoding takes
_AUTOENCODER = 0.3  # share that its autoencoder is trained for
_PILOT = 12  # batches


@dataclass(frozen=True)
class Size:
    """How much is spent; from the environment."""

    minutes: float = field(default_factory=lambda: float(os.environ.get("MINUTES", "20")))
    encoder_images: int = field(default_factory=lambda: int(os.environ.get("ENCODER_IMAGES", "60000")))
    judge_images: int = field(default_factory=lambda: int(os.environ.get("JUDGE_IMAGES", "16000")))
    prompts: int = field(default_factory=lambda: int(os.environ.get("PROMPTS", "512")))
    pictures: int = field(default_factory=lambda: int(os.environ.get("PICTURES", "2700")))
    data: tuple[str, ...] = field(default_factory=lambda: tuple(os.environ.get("DATA", "world,grocery").split(",")))
    root: Path = field(default_factory=lambda: Path(os.environ.get("LADDER_ROOT", "runs/ladder")))


def recipe_of(data: str, size: Size, family: Family, train: Mapping[str, Any], encoder: Mapping[str, Any]) -> Recipe:
    """The recipe of one family on one data set; ``train`` and ``encoder`` go over its sections."""
    world = data == "world"
    side = 32 if world else 64
    source: dict[str, Any] = {"parquet": str(GROCERY), "parquet_port": 18767}
    if world:
        shown = {"pictures": size.pictures, "leave_out": ["purple", "orange", "star"], "port": 18768, "faults": False}
        source = {"world": shown}
    tree = {
        "name": f"ladder-{data}",
        "collect": {**source, "per_host": 64, "image_size": side},
        "prepare": {"image_size": side, "holdout": 0.1 if world else 0.2, "min_rows": 50},
        "model": {"family": family},
        "train": {"text_encoder": {"images": size.encoder_images, **encoder}, **train},
        "assess": {"prompts": size.prompts, "judge_images": size.judge_images},
        "run": {"root": str(size.root)},
    }
    return parse_recipe(tree, f"the ladder's recipe for {family} on {data}")


def images_for(data: str, size: Size, family: Family, plan: dict[str, Any], save: Any) -> dict[str, Any]:
    """Images that each training of a family sees in its minutes, from a pilot of a few batches; kept in ``plan``."""
    key = f"{data}/{family}/{size.minutes:g}"
    if key not in plan:
        seconds = size.minutes * 60
        if family == "diffusion":
            shares = {"autoencoder": _AUTOENCODER, "denoiser": 1 - _AUTOENCODER - _LATENTS}
        else:
            shares = {family: 1.0}
        pilot = {part: {"images": _PILOT * _batch(part)} for part in shares}
        recipe = recipe_of(data, size, family, pilot, {"images": 256, "muon_rate": 0})
        with Context.of(recipe) as ctx:
            model = train(ctx, prepare(ctx))
            made = {part: ctx.store.by_digest(part, model.manifest.inputs[part]) for part in shares}
        pace = {part: _pace(made[part]) for part in shares}
        plan[key] = {part: max(_batch(part), int(pace[part] * seconds * share)) for part, share in shares.items()}
        save()
    return {part: {"images": images} for part, images in plan[key].items()}


def _batch(part: str) -> int:
    from components.contracts.recipe import Train

    return int(getattr(Train(), part).batch_size)


def _pace(artifact: Artifact) -> float:
    """Images a second while it ran, without the start of the workers."""
    curve = json.loads(artifact.path("curve.json").read_text())
    timed = [point for point in curve if "images_per_second" in point]
    return float(timed[-1]["images_per_second"] if timed else artifact.manifest.circumstance["images_per_second"])


def measured(recipe: Recipe, data: str, label: str, size: Size) -> dict[str, Any]:
    """Train, assess and measure one model; its row of the table."""
    with Context.of(recipe) as ctx:
        dataset = prepare(ctx)
        by = judge(ctx, dataset)
        model = train(ctx, dataset)
        assessment = assess(ctx, model, by)
        row = report.row_of(ctx, label, data, dataset, model, by, assessment)
    return row | {"minutes_asked": size.minutes}


def families(size: Size, keep: report.Kept) -> None:
    """One row a family and data set."""
    for data in size.data:
        if data == "grocery" and not GROCERY.exists():
            print(f"{GROCERY} is not there: the ladder is made on the embedded world alone", flush=True)
            continue
        for family in FAMILIES:
            train = images_for(data, size, family, keep.plan, keep.save)
            keep.row("rows", measured(recipe_of(data, size, family, train, {}), data, family, size))


def ablation(size: Size, keep: report.Kept) -> None:
    """The two-step training: the gan on four text encoders, the same images for each, on the embedded world."""
    shown = images_for("world", size, "gan", keep.plan, keep.save)["gan"]
    first_steps: dict[str, dict[str, Any]] = {
        # one batch at a rate of nothing: the weights it starts with
        "random": {"images": 1, "learning_rate": 1e-12, "muon_rate": 0},
        "contrastive": {"losses": "contrastive"},
        "damsm": {"losses": "damsm"},
        "both": {"losses": "both"},
    }
    for name, encoder in first_steps.items():
        # towers that learned nothing have nothing to say about a match
        gan = shown if name != "random" else {**shown, "damsm_weight": 0}
        keep.row("ablation", measured(recipe_of("world", size, "gan", {"gan": gan}, encoder), "world", name, size))


def main(parts: list[str]) -> int:
    """Run the parts; 2 where one is not known."""
    known = {"families": families, "ablation": ablation}
    if unknown := sorted(set(parts) - set(known)):
        print(f"error: no part {', '.join(unknown)}. Expected: {', '.join(known)}.", file=sys.stderr)
        return 2
    size = Size()
    keep = report.Kept.open(size.root)
    try:
        for name in parts or known:
            known[name](size, keep)
    except AtelierError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if keep.found["rows"] or keep.found["ablation"]:
            report.write(keep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
