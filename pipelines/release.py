"""release: judge against the champion, register, and move the alias on a pass."""

from __future__ import annotations

from typing import Annotated

import typer

from components.evaluation import assess as assessing
from components.evaluation import release as releasing
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.assess import judge
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.prepare import prepare
from pipelines.train import train


def release(ctx: Context, model: Artifact | None = None, by: Artifact | None = None) -> Artifact:
    """The gate's record for ``model``, measured with the champion by one judge on the same prompts and seeds."""
    if model is None or by is None:
        dataset = prepare(ctx)
        model, by = model or train(ctx, dataset), by or judge(ctx, dataset)
    assessment = assessing.assess(ctx, model, by)
    if judged := releasing.find(ctx, model, assessment):
        return judged
    champion = releasing.champion(ctx)
    return releasing.release(ctx, model, assessment, assessing.assess(ctx, champion[1], by) if champion else None)


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Return to the previous passing version.")] = False,
    debug: DebugOption = False,
) -> None:
    """Judge the recipe's model against the champion; the alias `champion` moves only on a pass."""
    with context(recipe, overrides, debug) as ctx:
        if rollback:
            releasing.rollback(ctx, "asked for on the command line")
        else:
            releasing.require_pass(release(ctx))


if __name__ == "__main__":
    run(command)
