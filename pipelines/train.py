"""train: text encoder, autoencoder, latents, denoiser, and the model folder made of them."""

from __future__ import annotations

from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.training import stages
from components.training.latents import encode_latents
from components.training.texts import encode_texts
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.prepare import prepare

PARTS = ("text_encoder", "autoencoder", "denoiser")  # kinds of the artifacts that a model is made of


def train(ctx: Context, dataset: Artifact | None = None, champion: Artifact | None = None) -> Artifact:
    """The model of ``dataset`` (by default: the recipe's); with ``champion``, continued from its weights."""
    dataset = dataset or prepare(ctx)
    start = {role: ctx.store.by_digest(role, champion.manifest.inputs[role]) for role in PARTS} if champion else {}
    text_encoder = stages.train_text_encoder(ctx, dataset, start.get("text_encoder"))
    autoencoder = stages.train_autoencoder(ctx, dataset, start.get("autoencoder"))
    latents = encode_latents(ctx, dataset, autoencoder)
    texts = encode_texts(ctx, dataset, text_encoder) if ctx.recipe.train.encode_text else None
    denoiser = stages.train_denoiser(ctx, dataset, latents, text_encoder, autoencoder, start.get("denoiser"), texts)
    return stages.assemble_model(ctx, dataset, text_encoder, autoencoder, denoiser)


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Train the recipe's model from scratch; collects and prepares first where that is not done."""
    with context(recipe, overrides, debug) as ctx:
        train(ctx)


if __name__ == "__main__":
    run(command)
