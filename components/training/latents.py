"""The encode step as a stage, and the sizes of the pictures that it and the trainings meet."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from components.contracts.errors import ArtifactError, TrainingError
from components.contracts.manifest import MANIFEST_NAME
from components.runtime.progress import say
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes
from components.training.moments import DTYPE, TRANSFORM


def encode_latents(ctx: Context, dataset: Artifact, autoencoder: Artifact) -> Artifact:
    """The moments of every picture of the dataset under the autoencoder: ``data/*.parquet``, ``latents.json``.

    ``latents.json`` holds ``channels``, ``size`` (side of the grid of a square picture) and ``scaling``, the factor
    to unit variance: measured on the training pictures, or, with ``train.autoencoder.scaling: config``, that of the
    loaded model's makers. Parts that were damaged since are encoded anew; rows that an earlier dataset had, with the
    same autoencoder, are taken from its latents.
    """

    def build(draft: Draft) -> Outcome:
        from components.models.autoencoder import Grid
        from components.training.encoding import Job, encode_dataset

        model = autoencoder.local() / "model"
        grid = Grid.of(model)
        require_multiple(dataset, grid.factor, "autoencoder")
        known = [str(path) for a in earlier for path in a.paths("data/")]
        job = Job(str(model), autoencoder.digest, draft.url, tuple(known))
        rows, reused, spread = encode_dataset(dataset.local(), job, ctx.recipe.run)
        scaling = grid.scaling if own else spread.scaling
        facts = {"channels": grid.channels, "size": side_of(dataset) // grid.factor, "scaling": scaling}
        write_bytes(f"{draft.url}/latents.json", json.dumps(facts, sort_keys=True).encode())
        return Outcome(counts={"rows": rows}, evidence=facts, circumstance={"reused": reused})

    own = ctx.recipe.train.autoencoder.scaling == "config"
    inputs, config = {"dataset": dataset, "autoencoder": autoencoder}, {"dtype": DTYPE, "transform": TRANSFORM}
    if own:
        config["scaling"] = "config"
    earlier = _encodings(ctx, autoencoder, config)
    return mended_stage(ctx, "latents", inputs, config, build)


def mended_stage(
    ctx: Context,
    kind: str,
    inputs: Mapping[str, Artifact],
    config: Mapping[str, Any],
    build: Callable[[Draft], Outcome],
) -> Artifact:
    """:func:`run_stage`, but a finished artifact that was damaged since is filled again instead of refused."""
    try:
        return run_stage(ctx, kind, inputs, config, build)
    except ArtifactError:
        if not _reopened(ctx, kind, ctx.store.draft(kind, inputs, config).identity):
            raise
        return run_stage(ctx, kind, inputs, config, build)


def picture_sizes(dataset: Artifact) -> list[tuple[int, int]]:
    """Height and width of the dataset's pictures, in pixels: every size that occurs, the smallest first."""
    from components.training.samples import by_size, sizes_of, table

    sizes = [size for size, _ in by_size(sizes_of(table(dataset.local(), ["height", "width"], split=None)))]
    if sizes:
        return sizes
    raise TrainingError(
        f"{dataset.short} holds no pictures", expected="rows to train on", remedy="look at the dataset's dropped counts"
    )


def side_of(dataset: Artifact) -> int:
    """Side of the square picture that stands for the dataset's sizes, in pixels."""
    sizes = picture_sizes(dataset)
    return sizes[0][0] if len(sizes) == 1 else int(dataset.manifest.config["image_size"])


def require_multiple(dataset: Artifact, factor: int, what: str) -> None:
    """Every side of every picture must be a multiple of what a network makes one of.

    Raises:
        TrainingError: one is not.
    """
    odd = [f"{width}x{height}" for height, width in picture_sizes(dataset) if height % factor or width % factor]
    if odd:
        raise TrainingError(
            f"{dataset.short} holds pictures of {', '.join(odd)} pixels",
            expected=f"sides that are multiples of {factor}, for the {what}",
            remedy="prepare the dataset again with this recipe, whose buckets fit its networks",
        )


def _encodings(ctx: Context, autoencoder: Artifact, config: Mapping[str, Any]) -> list[Artifact]:
    """Sound latents that were made with this autoencoder before."""
    found = []
    for latents in ctx.store.list("latents"):
        if latents.manifest.inputs["autoencoder"] == autoencoder.digest and latents.manifest.config == config:
            with contextlib.suppress(ArtifactError):  # a damaged one is no help, and no hindrance
                latents.verify()
                found.append(latents)
    return found


def _reopened(ctx: Context, kind: str, identity: str) -> bool:
    """Make a damaged artifact a draft again, whose sound parts are kept; False where it is not damaged."""
    import fsspec

    damaged = ctx.store.find(kind, identity)
    if damaged is None:
        return False
    try:
        damaged.verify()
    except ArtifactError as error:
        say(f"{kind}: {error.problem}; encoding that again")
        fs, path = fsspec.core.url_to_fs(damaged.url)
        fs.rm_file(f"{path}/{MANIFEST_NAME}")
        return True
    return False
