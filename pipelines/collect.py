"""collect: from a URL and caption list to shards and a ledger with one row for every URL."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from components.data import collecting, sources
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


class Retry(StrEnum):
    """What of a finished collection is asked for again."""

    TRANSIENT = "transient"


def collect(ctx: Context, retry: Retry | None = None) -> Artifact:
    """The collection of the recipe's source as it is now."""
    with sources.opened(ctx.recipe) as source:
        again = retry is Retry.TRANSIENT
        return collecting.collect(ctx, source.urls, source.allow_hosts, source.files, retry=again)


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    retry: Annotated[
        Retry | None,
        typer.Option(help="Ask again for what a finished collection missed: transient = timeouts, lost connections …"),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Fetch every URL of the recipe's list: shards of pictures and captions, and a ledger of every URL's fate."""
    with context(recipe, overrides, debug) as ctx:
        collect(ctx, retry)


if __name__ == "__main__":
    run(command)
