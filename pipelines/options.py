"""What every command line shares: the options, the context, and how errors are shown."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from components.contracts.errors import AtelierError
from components.runtime.cluster import apply_quiet_environment
from components.runtime.recipes import load_recipe
from components.runtime.stage import Context

RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="Built-in recipe (demo, emoji, …) or the path of a YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override, e.g. train.denoiser.images=200000. Repeatable."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the workers' output.")]


def context(recipe: str, overrides: list[str] | None, debug: bool = False) -> Context:
    """The context of a recipe; use it in a ``with`` block, which holds Ray for as long as it is needed."""
    apply_quiet_environment()
    if debug:
        os.environ["ATELIER_DEBUG"] = "1"
    return Context.of(load_recipe(recipe, overrides or ()))


def run(command: Callable[..., Any] | typer.Typer) -> None:
    """Run a command or an app as this process: errors become one message and an exit code, Ctrl-C stops cleanly."""
    if isinstance(command, typer.Typer):
        app = command
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(command)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops as Ctrl-C does
    try:
        app()
    except SystemExit as end:
        if end.code == 130:  # what typer makes of Ctrl-C
            print("\nStopped. Run the same command again to go on from here.", file=sys.stderr)
        raise
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        known = user_error(error)
        if known:
            print(f"error: {known}", file=sys.stderr)
            sys.exit(known.exit_code)
        first = (str(error).strip().splitlines() or [""])[0][:300]
        print(
            f"error: unexpected {type(error).__name__}: {first}. Finished artifacts are whole. "
            "Remedy: run again with --debug to see where, and report it.",
            file=sys.stderr,
        )
        sys.exit(70)


def user_error(error: BaseException | None) -> AtelierError | None:
    """The :class:`AtelierError` inside ``error``, also when Ray carried it here from a worker."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, AtelierError):
            cause = getattr(error, "cause", None)  # Ray's dual of our error and its own
            return cause if isinstance(cause, AtelierError) else error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
