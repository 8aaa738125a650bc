"""All stages in order. The same list runs here, under `ray job submit`, in Kubeflow and on a schedule."""

from __future__ import annotations

from components.evaluation import release as releasing
from components.runtime.recording import recorded
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from components.training.rules import check_recipe
from pipelines.assess import judge
from pipelines.collect import collect
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.prepare import prepare
from pipelines.release import release
from pipelines.train import train

STAGES: tuple[str, ...] = ("collect", "prepare", "train", "assess", "release")


def end_to_end(ctx: Context) -> Artifact:
    """From the recipe's source to the gate's record of the model made of it."""
    check_recipe(ctx.recipe)  # before hours of collecting
    with recorded(ctx):
        collection = collect(ctx)
        dataset = prepare(ctx, [collection])
        model = train(ctx, dataset)
        return release(ctx, model, judge(ctx, dataset))


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Collect, prepare, train, assess and release; what is already done is not done again."""
    with context(recipe, overrides, debug) as ctx:
        releasing.require_pass(end_to_end(ctx))


if __name__ == "__main__":
    run(command)
