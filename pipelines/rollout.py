"""rollout: the versions that servers try beside the champion."""

from __future__ import annotations

from typing import Annotated

import typer

from components.contracts.errors import InputError
from components.evaluation import trials
from components.evaluation.dropping import Drops
from components.evaluation.registry import CHALLENGER, CHAMPION, SHADOW, Registry
from components.evaluation.signing import Keys
from components.runtime.progress import say
from components.runtime.stage import Context
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    challenger: Annotated[
        int, typer.Option(help="Let this version answer `serve.canary_share` of the API keys; it must have passed.")
    ] = 0,
    shadow: Annotated[
        int, typer.Option(help="Let this version draw `serve.shadow_share` of the requests too, shown to nobody.")
    ] = 0,
    promote: Annotated[bool, typer.Option("--promote", help="Make the challenger the champion.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Try nothing any more.")] = False,
    debug: DebugOption = False,
) -> None:
    """Show or change which versions are tried beside the champion; servers follow within seconds.

    A model that passes becomes champion at once, or, with --set run.release_to=challenger, the challenger:

        atelier release --recipe demo --set run.release_to=challenger

        atelier rollout --recipe demo --promote
    """
    if promote + stop + bool(challenger or shadow) > 1:
        raise InputError(
            "These options do not go together",
            expected="--challenger and --shadow, or --promote, or --stop",
            remedy="see `atelier rollout --help`",
        )
    with context(recipe, overrides, debug) as ctx:
        if challenger:
            trials.try_out(ctx, challenger, "challenger")
        if shadow:
            trials.try_out(ctx, shadow, "shadow")
        if promote:
            trials.promote_challenger(ctx)
        elif stop:
            trials.end_trials(ctx)
        show(ctx)


def show(ctx: Context) -> None:
    """Print every version with its alias, verdict and first reason."""
    from rich.console import Console
    from rich.table import Table

    serve, drops = ctx.recipe.serve, Drops(ctx.home, Keys(ctx.home))
    registry = Registry(ctx)
    roles = {version.version: alias for alias, version in trials.trials(ctx).items()}
    if present := registry.champion():
        roles[present.version] = CHAMPION
    shares = {CHALLENGER: f"{serve.canary_share:.0%} of the keys", SHADOW: f"{serve.shadow_share:.0%} of the requests"}
    table = Table(box=None, header_style="dim")
    for column in ("version", "role", "share", "verdict", "why"):
        table.add_column(column, overflow="fold")
    for version in registry.versions():
        role = roles.get(version.version, "")
        dropped = drops.why(version)
        why = f"given up: {dropped}" if dropped else version.tags.get("reasons", "").partition("\n")[0]
        table.add_row(str(version.version), role, shares.get(role, ""), version.tags.get("verdict", ""), why)
    if not table.row_count:
        say(f"No version of {ctx.recipe.release.model_name} yet: make one with `atelier run`")
        return
    Console().print(table)


if __name__ == "__main__":
    run(command)
