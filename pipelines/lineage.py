"""lineage: what a model version was made from, back to the URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.evaluation.lineage import as_html, as_lines, lineage_of
from components.runtime.storage import write_bytes
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


def command(
    version: Annotated[
        int | None, typer.Argument(help="Number of a registered version; the champion by default.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Draw it on a page, written to this file.")] = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """What a version was made from: URLs -> collection -> dataset -> trainings -> assessment -> the gate's record."""
    ctx = context(recipe, overrides, debug)
    found = lineage_of(ctx, version)
    if html:
        write_bytes(str(html), as_html(found).encode())
        typer.echo(f"Written to {html}")
    else:
        typer.echo("\n".join(as_lines(found)))


if __name__ == "__main__":
    run(command)
