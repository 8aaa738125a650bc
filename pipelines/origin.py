"""verify and erase: where a picture came from, and what is remembered of who asked for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.contracts.errors import InputError
from components.runtime.stage import Context
from pipelines.options import RecipeOption, SetOption, context

_MOST_BYTES = 256 * 2**20


def verify(
    file: Annotated[Path, typer.Argument(help="A PNG, JPEG or WebP file.")],
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
) -> None:
    """What a picture carries: metadata of its origin, the invisible watermark, and whether the logbook knows it."""
    from serving import verifying

    ctx = context(recipe, overrides)
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{file} has {file.stat().st_size:,} bytes", expected=f"at most {_MOST_BYTES:,}")
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"The file {file} cannot be read: {error.strerror or error}") from error
    for line in verifying.as_lines(verifying.verify(data, ctx.home)):
        typer.echo(line)


def erase(
    user: Annotated[str | None, typer.Option(help="The user's name, as clients sent it in the field `user`.")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="ID", help="Id of an API key: only of it, or all of its rows.")
    ] = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Erase from the logbook what a user, or a whole API key, asked for, and their prompts from drift artifacts; also
    while servers run. Copies that you made of the logbook are not touched."""
    from serving import erasing

    ctx = context(recipe, overrides)
    erased = erasing.erase(ctx.home, user=user, key_id=key)
    typer.echo(f"{erased.rows} rows erased from {erased.files} files of {ctx.home / 'logbook'}")
    typer.echo(f"{forget_erased(ctx)} prompts taken out of drift artifacts")


def forget_erased(ctx: Context) -> int:
    """Take out of drift artifacts what was erased from the logbook, by command or over the API; the prompts' number."""
    from monitoring.forgetting import forget_prompts
    from serving.erasing import erased_requests

    with erased_requests(ctx.home) as requests:
        return forget_prompts(ctx.store, requests)
