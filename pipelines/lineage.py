"""lineage: what a model version was made from, back to the URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.contracts.errors import InputError
from components.evaluation.lineage import as_html, as_lines, lineage_of, made_from
from components.runtime.storage import write_bytes
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


def command(
    version: Annotated[
        int | None, typer.Argument(help="Number of a registered version; the champion by default.")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option("--from", metavar="KIND:DIGEST", help="The other way: what was made from this artifact."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Draw it on a page, written to this file.")] = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """What a version was made from: URLs -> collection -> dataset -> trainings -> assessment -> the gate's record."""
    ctx = context(recipe, overrides, debug)
    if of is not None:
        if version is not None or html:
            raise InputError("--from goes with no version and no --html", remedy="ask for one of them at a time")
        typer.echo("\n".join(made_from(ctx, of)))
        return
    found = lineage_of(ctx, version)
    if html:
        write_bytes(str(html), as_html(found).encode())
        typer.echo(f"Written to {html}")
    else:
        typer.echo("\n".join(as_lines(found)))


if __name__ == "__main__":
    run(command)
