"""serve: the champion behind an OpenAI-compatible image API with a playground."""

from __future__ import annotations

from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Serve the champion until stopped; follows the registry without a restart."""
    from serving import app

    with context(recipe, overrides, debug) as ctx:
        app.start(ctx, blocking=True)


if __name__ == "__main__":
    run(command)
