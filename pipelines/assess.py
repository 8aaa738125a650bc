"""assess: measure a model with a judge that is an artifact of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.evaluation import assess as assessing
from components.evaluation.judge import make_judge
from components.evaluation.prompt_sets import prompt_sets
from components.evaluation.retrieval import measure_encoder
from components.evaluation.showing import show_assessment
from components.runtime.recording import recorded
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.training import stages
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.personalize import base_model
from pipelines.prepare import prepare
from pipelines.train import train


def judge(ctx: Context, dataset: Artifact) -> Artifact:
    """The judge of ``dataset``: a CLIP trained apart from the models it judges, prompts, reference moments."""
    protocol = ctx.recipe.assess
    eyes = ctx.recipe.train.text_encoder.model_copy(update={"losses": "contrastive", "thumbnail": 0})
    clip = stages.train_text_encoder(
        ctx, dataset, None, "judge_clip", 1, eyes, protocol.judge_images, measure=measure_encoder
    )
    return make_judge(ctx, clip, dataset, prompt_sets(ctx, dataset))


def assess(ctx: Context, model: Artifact | None = None, by: Artifact | None = None) -> Artifact:
    """The assessment of ``model`` by the judge ``by`` (by default: the recipe's model and judge)."""
    with recorded(ctx):
        if model is None or by is None:
            dataset = prepare(ctx)
            model, by = model or train(ctx, dataset), by or judge(ctx, dataset)
        return assessing.assess(ctx, model, by)


def side_by_side(ctx: Context, assessment: Artifact, against: str) -> Artifact:
    """The assessment of ``against`` (champion, a version's number or a model folder) by the judge of ``assessment``."""
    by = ctx.store.by_digest("judge", assessment.manifest.inputs["judge"])
    return assessing.assess(ctx, base_model(ctx, against)[0], by)


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    against: Annotated[
        str | None,
        typer.Option(help="champion, or a version's number: measured too, and shown side by side on the page."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file of the page; default runs/NAME/assessment.html.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Measure the recipe's model on held-out prompts and write a page about it; trains first where that is not done."""
    with context(recipe, overrides, debug) as ctx, recorded(ctx):
        found = assess(ctx)
        show_assessment(ctx, found, side_by_side(ctx, found, against) if against else None, output)


if __name__ == "__main__":
    run(command)
