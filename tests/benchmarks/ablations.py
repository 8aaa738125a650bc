"""``make bench-ablations``: the choices behind the training's defaults, each against the one thing changed.

    python -m tests.benchmarks.ablations [--root FOLDER] [--only NAME …] [--seeds 0 1] [--report]

Every run trains on the same pictures of the embedded world, for the same number of images, from the same
autoencoder and text encoder of its seed (where they are not what is changed), and is judged on the same prompts by
the same judge. What a run has made stays in the store below ``--root``, its figures in ``results/``: the same command
goes on where it was stopped, and ``--report`` writes ``docs/benchmarks/ablations/`` from the runs that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.runtime.storage import write_bytes

ROOT = Path(__file__).parents[2]
PROMPTS = 256  # a seed
BASE: dict[str, Any] = {
    "name": "ablations",
    "collect": {"world": {"pictures": 2700, "faults": False, "port": 8796}, "timeout_s": 10, "per_host": 64},
    "train": {
        "text_encoder": {"images": 16_000},
        "autoencoder": {"images": 16_000},
        "denoiser": {"images": 16_000, "batch_size": 64},
    },
    "assess": {"prompts": PROMPTS, "judge_images": 16_000},
}


@dataclass(frozen=True)
class Variant:
    """One change of the base.

    Args:
        group: of what is compared. label: in words. changes: recipe keys, dotted. guidance: of the judgement.
    """

    group: str
    label: str
    changes: dict[str, Any] = field(default_factory=dict)
    guidance: float = 2.0


_TRAIN = "train.denoiser."
VARIANTS: dict[str, Variant] = {
    "base": Variant("base", "as the recipes are: flow, Muon, EMA 0.998, dropout 0.1, CLIP text encoder, U-Net"),
    "clip-none": Variant(
        "text encoder", "text encoder not pretrained",
        {"train.text_encoder.images": 1, "train.text_encoder.learning_rate": 1e-9, "train.text_encoder.muon_rate": 0.0},
    ),
    "thumbnail": Variant(
        "text encoder", "text encoder also draws 16 pixels from the caption", {"train.text_encoder.thumbnail": 16}
    ),
    "epsilon": Variant("objective", "epsilon prediction, min-SNR 5", {_TRAIN + "objective": "epsilon"}),
    "v": Variant("objective", "v prediction, min-SNR 5, zero terminal SNR", {_TRAIN + "objective": "v"}),
    "adamw": Variant("optimiser", "AdamW alone, rate 0.001", {_TRAIN + "muon_rate": 0.0}),
    "adamw-3": Variant(
        "optimiser", "AdamW alone, rate 0.003", {_TRAIN + "muon_rate": 0.0, _TRAIN + "learning_rate": 3e-3}
    ),
    "ema-none": Variant("moving average", "no moving average", {_TRAIN + "ema_decay": 0.0}),
    "ema-power": Variant("moving average", "power-function average, relative length 0.1", {_TRAIN + "ema_length": 0.1}),
    "dropout-0-plain": Variant(
        "caption dropout", "no dropout, without guidance", {_TRAIN + "caption_dropout": 0.0}, 1.0
    ),
    "dropout-0.1-plain": Variant("caption dropout", "dropout 0.1, without guidance", {}, 1.0),
    "dropout-0.2": Variant("caption dropout", "dropout 0.2", {_TRAIN + "caption_dropout": 0.2}),
    "align": Variant("alignment", "REPA with the CLIP's picture tower, weight 0.5", {_TRAIN + "align_weight": 0.5}),
    "dit": Variant(
        "denoiser", "transformer: width 128, depth 6, patch 1",
        {_TRAIN + "family": "dit", _TRAIN + "width": 128, _TRAIN + "depth": 6, _TRAIN + "patch": 1},
    ),
}  # fmt: skip


def tree_of(variant: Variant, seed: int, root: Path) -> dict[str, Any]:
    """The recipe of a run, as plain values."""
    run = {"root": str(root), "launcher": "here"}  # many short trainings: none of them starts processes
    tree: dict[str, Any] = json.loads(json.dumps(BASE)) | {"seed": seed, "run": run}
    tree["assess"]["guidance_scale"] = variant.guidance
    tree["serve"] = {"default_guidance": variant.guidance}  # a model that cannot be guided must not be asked to be
    for key, value in variant.changes.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def run(name: str, seed: int, root: Path) -> dict[str, Any]:
    """Train and judge one variant, and return its figures. The pictures and the judge are those of seed 0."""
    from components.evaluation import assess as assessing
    from components.runtime.recipes import parse_recipe
    from components.runtime.stage import Context
    from pipelines.assess import judge
    from pipelines.prepare import prepare
    from pipelines.train import train

    variant = VARIANTS[name]
    ctx = Context.of(parse_recipe(tree_of(variant, seed, root), name))
    plain = Variant("judge", "judge", guidance=variant.guidance)
    common = Context.of(parse_recipe(tree_of(plain, 0, root), "judge"))
    dataset = prepare(common)
    model = train(ctx, dataset)
    found = assessing.assess(ctx, model, judge(common, dataset))
    metrics = json.loads(found.path("metrics.json").read_text())
    training = model.manifest.evidence["trainings"]["denoiser"]
    return {
        "variant": name, "seed": seed, "metrics": metrics["known"], "stamp": metrics["stamp"],
        "images": training["images"], "curve": training["curve"], "parameters": _parameters(model),
        "model": model.digest,
    }  # fmt: skip


def _parameters(model: Any) -> int:
    """Of the denoiser."""
    from safetensors import safe_open

    [weights] = [
        n for n in model.manifest.files if n.endswith(".safetensors") and n.split("/")[-2] in ("unet", "transformer")
    ]
    with safe_open(model.path(weights), "np") as file:
        return sum(_product(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def results(root: Path) -> Iterator[dict[str, Any]]:
    """The figures of the runs that are done, in the order of the variants."""
    for name in VARIANTS:
        for path in sorted((root / "results").glob(f"{name}.seed*.json")):
            yield json.loads(path.read_text())


def _path(root: Path, name: str, seed: int) -> Path:
    return root / "results" / f"{name}.seed{seed}.json"


def _run_all(todo: list[tuple[str, int]], root: Path) -> list[str]:
    """Make these runs, one after the other; returns the ones that failed, in words."""
    from components.contracts.recipe import Run
    from components.runtime.cluster import ray_session

    failed = []
    with ray_session(Run()):
        for name, seed in todo:
            print(f"ablations: {name}, seed {seed}: {VARIANTS[name].label}", flush=True)
            try:
                write_bytes(str(_path(root, name, seed)), json.dumps(run(name, seed, root)).encode())
            except Exception:  # the other runs are worth having
                traceback.print_exc()
                failed.append(f"{name}, seed {seed}")
    return failed


def main(argv: list[str]) -> int:
    """Run what is asked for and not done yet, then write the report. Returns 1 where a run failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ablations", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--report", action="store_true", help="run nothing, write the report of what is there")
    asked = parser.parse_args(argv)
    root = asked.root.resolve()
    (root / "results").mkdir(parents=True, exist_ok=True)
    wanted = [(name, seed) for seed in asked.seeds for name in asked.only or VARIANTS]
    todo = [(name, seed) for name, seed in wanted if not _path(root, name, seed).exists()]
    failed = [] if asked.report or not todo else _run_all(todo, root)
    from tests.benchmarks.ablations_report import write_report

    write_report(list(results(root)))
    if failed:
        print(f"error: these runs failed and are not in the report: {'; '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
