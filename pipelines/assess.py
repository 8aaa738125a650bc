"""assess: measure a model with a judge that is an artifact of its own."""

from __future__ import annotations

from components.evaluation import assess as assessing
from components.evaluation.judge import make_judge
from components.evaluation.prompts import heldout_prompts
from components.evaluation.retrieval import measure_encoder
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.training import stages
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.prepare import prepare
from pipelines.train import train


def judge(ctx: Context, dataset: Artifact) -> Artifact:
    """The judge of ``dataset``: a CLIP trained apart from the models it judges, prompts, reference moments."""
    protocol = ctx.recipe.assess
    eyes = ctx.recipe.train.text_encoder.model_copy(update={"losses": "contrastive"})
    clip = stages.train_text_encoder(
        ctx, dataset, None, "judge_clip", 1, eyes, protocol.judge_images, measure=measure_encoder
    )
    return make_judge(ctx, clip, dataset, heldout_prompts(ctx, dataset))


def assess(ctx: Context, model: Artifact | None = None, by: Artifact | None = None) -> Artifact:
    """The assessment of ``model`` by the judge ``by`` (by default: the recipe's model and judge)."""
    if model is None or by is None:
        dataset = prepare(ctx)
        model, by = model or train(ctx, dataset), by or judge(ctx, dataset)
    return assessing.assess(ctx, model, by)


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Measure the recipe's model on held-out prompts; trains first where that is not done."""
    with context(recipe, overrides, debug) as ctx:
        assess(ctx)


if __name__ == "__main__":
    run(command)
