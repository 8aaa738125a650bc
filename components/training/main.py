"""One training stage without Ray, on one process or under torchrun.

    python -m components.training.main autoencoder --recipe demo
    torchrun --nproc-per-node 2 -m components.training.main denoiser --recipe demo --set run.root=/shared/runs

The inputs are artifacts of the recipe's store: the newest of a kind, or the one whose digest begins as given with
``--dataset``, ``--latents`` and so on. What is made is the artifact that the same stage under Ray makes; run the same
command again to go on after a kill, with any number of processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from components.contracts.errors import ArtifactError, AtelierError
from components.contracts.recipe import Recipe
from components.runtime.cluster import apply_quiet_environment
from components.runtime.recipes import load_recipe
from components.runtime.stage import Context
from components.runtime.storage import Artifact

_INPUTS = {
    "text_encoder": ("dataset",),
    "autoencoder": ("dataset",),
    "denoiser": ("dataset", "latents", "text_encoder", "autoencoder"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stage that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m components.training.main", description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=sorted(_INPUTS))
    parser.add_argument("--recipe", default="demo", help="name of a recipe, or path of a YAML file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    for kind in sorted({kind for kinds in _INPUTS.values() for kind in kinds} | {"text_states"}):
        parser.add_argument(f"--{kind.replace('_', '-')}", metavar="DIGEST", help="beginning of its digest")
    chosen = parser.parse_args(arguments)
    apply_quiet_environment()
    try:
        recipe = load_recipe(chosen.recipe, [*chosen.overrides, "run.launcher=here"])
        return _on_every_rank(chosen, recipe)
    except AtelierError as error:
        print(f"atelier: {error}", file=sys.stderr)
        return error.exit_code


def _on_every_rank(chosen: argparse.Namespace, recipe: Recipe) -> int:
    import torch

    from components.training.engine import joined_group
    from components.training.here import dismiss, follow

    torch.set_num_threads(recipe.run.threads_per_worker)
    rank, _ = joined_group()
    if rank > 0:
        follow()
        return 0
    made = _made(chosen, Context.of(recipe))
    dismiss()
    print(made.url)
    return 0


def _made(chosen: argparse.Namespace, ctx: Context) -> Artifact:
    from components.training import stages

    inputs = {kind: _input(ctx, kind, getattr(chosen, kind)) for kind in _INPUTS[chosen.stage]}
    if chosen.stage == "text_encoder":
        return stages.train_text_encoder(ctx, inputs["dataset"])
    if chosen.stage == "autoencoder":
        return stages.train_autoencoder(ctx, inputs["dataset"])
    texts = ctx.store.by_digest("text_states", chosen.text_states) if chosen.text_states else None
    return stages.train_denoiser(ctx, **inputs, texts=texts)


def _input(ctx: Context, kind: str, digest: str | None) -> Artifact:
    if digest:
        return ctx.store.by_digest(kind, digest)
    found = ctx.store.list(kind)
    if not found:
        raise ArtifactError(
            f"There is no {kind.replace('_', ' ')} in {ctx.store.url}",
            expected="an artifact of that kind to train with",
            remedy="make it first: atelier collect and atelier prepare, or the training before this one",
        )
    return found[-1]


if __name__ == "__main__":
    sys.exit(main())
