"""collect: from a URL and caption list to shards and a ledger with one row for every URL."""

from __future__ import annotations

from components.data import collecting, sources
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


def collect(ctx: Context) -> Artifact:
    """The collection of the recipe's source as it is now."""
    with sources.opened(ctx.recipe) as source:
        return collecting.collect(ctx, source.urls, source.allow_hosts)


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Fetch every URL of the recipe's list: shards of pictures and captions, and a ledger of every URL's fate."""
    with context(recipe, overrides, debug) as ctx:
        collect(ctx)


if __name__ == "__main__":
    run(command)
