"""release: judge against the champion, register, and move the alias on a pass."""

from __future__ import annotations

from typing import Annotated

import typer

from components.contracts.errors import InputError
from components.evaluation import release as releasing
from components.evaluation.showing import show_release
from components.runtime.progress import say
from components.runtime.recording import recorded
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.assess import judge
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.prepare import prepare
from pipelines.train import train


def release(ctx: Context, model: Artifact | None = None, by: Artifact | None = None) -> Artifact:
    """The gate's record for ``model``, measured with the champion by one judge on the same prompts and seeds."""
    with recorded(ctx):
        if model is None or by is None:
            dataset = prepare(ctx)
            model, by = model or train(ctx, dataset), by or judge(ctx, dataset)
        record = releasing.judge_and_release(ctx, model, by)
        show_release(ctx, record)
    return record


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Return to the previous passing version.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Make it champion whatever the gate says; signed and shown as forced.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why: kept with a forced release or a rollback.")] = "",
    version: Annotated[int, typer.Option(help="With --force: a registered version, not the recipe's model.")] = 0,
    rotate_key: Annotated[bool, typer.Option("--rotate-key", help="Sign with a new key from now on.")] = False,
    debug: DebugOption = False,
) -> None:
    """Judge the recipe's model against the champion; the alias `champion` moves only on a pass."""
    if sum((rollback, force, rotate_key)) > 1 or (version and not force):
        raise InputError(
            "These options do not go together",
            expected="one of --rollback, --force and --rotate-key; --version with --force only",
            remedy="see `atelier release --help`",
        )
    with context(recipe, overrides, debug) as ctx:
        if rollback:
            releasing.rollback(ctx, reason or "asked for on the command line")
        elif rotate_key:
            say(f"release: new signatures carry the key {releasing.rotate_key(ctx)}; the former one still verifies")
        elif force:
            record = None if version else release(ctx)
            releasing.force(ctx, reason, version or None, record)
            if record:
                show_release(ctx, record)  # again: it says by whom it was forced
        else:
            releasing.require_pass(release(ctx))


if __name__ == "__main__":
    run(command)
