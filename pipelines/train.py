"""train: text encoder, autoencoder, latents, denoiser, and the model folder made of them.

With ``model.family`` cnn, vae or gan: text encoder and that network in place of autoencoder, latents and denoiser.
"""

from __future__ import annotations

from typing import Annotated

import typer

from components.contracts.recipe import Recipe
from components.evaluation.retrieval import measure_encoder
from components.runtime.recording import recorded
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.training import families, loading, stages
from components.training.latents import encode_latents
from components.training.rules import check_recipe
from components.training.texts import encode_texts
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.prepare import prepare


def train(ctx: Context, dataset: Artifact | None = None, champion: Artifact | None = None) -> Artifact:
    """The model of ``dataset`` (by default: the recipe's); with ``champion``, continued from its weights."""
    check_recipe(ctx.recipe)
    with recorded(ctx):
        start = families.champion_parts(ctx, champion)
        dataset = dataset or prepare(ctx)
        family = ctx.recipe.model.family
        text_encoder = loading.text_encoder_of(ctx, dataset, start.get("text_encoder"), measure_encoder)
        if family != "diffusion":
            texts = encode_texts(ctx, dataset, text_encoder) if ctx.recipe.train.encode_text else None
            network = families.train_network(ctx, dataset, text_encoder, start.get(family), texts)
            return families.assemble_network(ctx, dataset, text_encoder, network)
        autoencoder = loading.autoencoder_of(ctx, dataset, start.get("autoencoder"))
        latents = encode_latents(ctx, dataset, autoencoder)
        texts = encode_texts(ctx, dataset, text_encoder) if ctx.recipe.train.encode_text else None
        denoiser = stages.train_denoiser(ctx, dataset, latents, text_encoder, autoencoder, start.get("denoiser"), texts)
        return stages.assemble_model(ctx, dataset, text_encoder, autoencoder, denoiser)


PreflightOption = Annotated[
    bool,
    typer.Option(
        "--preflight", "--dry-run",
        help="Only look: shapes, memory a worker and operations of each training, and one step of it. Needs no data.",
    ),
]  # fmt: skip


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    preflight: PreflightOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the recipe's model from scratch; collects and prepares first where that is not done."""
    with context(recipe, overrides, debug) as ctx:
        if preflight:
            look(ctx.recipe)
        else:
            train(ctx)


def look(recipe: Recipe) -> None:
    """Print what each training of the recipe would need.

    Raises:
        TrainingError: the recipe cannot be trained so, or a training does not fit into memory.
    """
    from components.training import preflight

    reports = preflight.report(recipe, one_step=True)
    print(preflight.table(reports))
    preflight.require_room(reports)


if __name__ == "__main__":
    run(command)
