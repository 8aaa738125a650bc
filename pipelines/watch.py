"""watch: has the world drifted? Then train again, or roll back."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from components.evaluation import release as releasing
from components.evaluation.dropping import Drops
from components.evaluation.registry import can_roll_back
from components.evaluation.signing import Keys
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from monitoring import watch as watching
from monitoring.schedule import run_on_schedule
from pipelines.finetune import finetune
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.origin import forget_erased
from serving.logbook import read_logbook


def watch(ctx: Context) -> Artifact:
    """The drift report of what was asked of the champion since it was released, with its decision."""
    version, model = releasing.require_champion(ctx)
    dataset = ctx.store.by_digest("dataset", model.manifest.inputs["dataset"])
    dropped = Drops(ctx.home, Keys(ctx.home)).why(version)
    forget_erased(ctx)
    logbook = read_logbook(ctx.home / "logbook")
    return watching.watch(ctx, dataset, logbook, str(version.version), can_roll_back(ctx), dropped)


def act(ctx: Context, action: str, why: str = "") -> None:
    """Do what was decided: ``keep``, ``retrain`` or ``roll_back``; ``why`` is kept with a rollback."""
    if action == "retrain":
        finetune(ctx)
    elif action == "roll_back":
        releasing.rollback(ctx, f"the watch: {why}" if why else "the watch decided so")


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    schedule: Annotated[
        str | None,
        typer.Option(help='Cron expression: train again at these times, e.g. "0 3 * * *". Runs until stopped.'),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report and decide, but do nothing about it.")] = False,
    debug: DebugOption = False,
) -> None:
    """Compare what was asked with what was learned; on drift collect, train, judge and release again."""
    ctx = context(recipe, overrides, debug)
    schedule = schedule or ctx.recipe.run.schedule
    if schedule:

        def job() -> None:
            with context(recipe, overrides, debug) as fresh:
                act(fresh, "retrain")

        run_on_schedule(schedule, job, threading.Event())
        return
    with ctx:
        decision = watching.decision_of(watch(ctx))
        say(f"watch: {decision.action}: {'; '.join(decision.reasons)}")
        if not dry_run:
            act(ctx, decision.action, "; ".join(decision.reasons))


if __name__ == "__main__":
    run(command)
