"""prepare: from collections to a deduplicated, filtered, validated dataset."""

from __future__ import annotations

from collections.abc import Sequence

from components.data import preparing
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.collect import collect
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


def prepare(
    ctx: Context, collections: Sequence[Artifact] | None = None, tokenizer_from: Artifact | None = None
) -> Artifact:
    """The dataset of ``collections`` (by default: of what the recipe collects), oldest collection first."""
    return preparing.prepare(ctx, collections or [collect(ctx)], tokenizer_from)


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Deduplicate, filter, validate and split what was collected; collects first where that is not done."""
    with context(recipe, overrides, debug) as ctx:
        prepare(ctx)


if __name__ == "__main__":
    run(command)
