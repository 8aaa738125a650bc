"""key: who may use the image API, with which rights and how much."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

from components.contracts.errors import InputError
from pipelines.options import RecipeOption, SetOption, context

app = typer.Typer(no_args_is_help=True, help="Make, list, change and revoke the API keys of the server.")

AdminOption = Annotated[
    bool | None, typer.Option("--admin/--no-admin", help="It may erase, cancel and compare for every key.")
]
RateOption = Annotated[int | None, typer.Option(help="Requests a minute; 0: no limit. Else as the recipe says.")]
QuotaOption = Annotated[int | None, typer.Option(help="Pictures a day (UTC); 0: no limit. Else as the recipe says.")]
LogOption = Annotated[
    bool | None, typer.Option("--log/--no-log", help="Whether its prompts and users are written to the logbook.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `atelier key list` shows it.")]


@app.command("make")
def make(
    name: Annotated[str, typer.Argument(help="Whom the key is for.")],
    admin: AdminOption = None,
    rate: RateOption = None,
    quota: QuotaOption = None,
    log: LogOption = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Make an API key for the server. It is shown once; only its hash is kept."""
    from serving.auth import GENERATE, RIGHTS, make_key

    ctx = context(recipe, overrides)
    rights = RIGHTS if admin else (GENERATE,)
    text = make_key(ctx.home / "keys.json", name, rights=rights, rate=rate, quota=quota, log_prompts=log is not False)
    typer.echo(text)


@app.command("list")
def list_(recipe: RecipeOption = "demo", overrides: SetOption = None) -> None:
    """Every key with its rights, its limits and what it drew today; the keys themselves are not kept."""
    from serving.auth import list_keys
    from serving.quota import used_today

    ctx = context(recipe, overrides)
    serve = ctx.recipe.serve
    rows = [("ID", "NAME", "RIGHTS", "REQUESTS/MIN", "PICTURES/DAY", "TODAY", "PROMPTS", "MADE")]
    for key in list_keys(ctx.home / "keys.json"):
        made = datetime.datetime.fromtimestamp(key.created, datetime.UTC).strftime("%Y-%m-%d")
        rate, quota = (
            _limit(a, b) for a, b in ((key.rate, serve.requests_per_minute), (key.quota, serve.pictures_per_day))
        )
        today = str(used_today(ctx.home / "quota", key.id))
        logged = serve.log_prompts if key.log_prompts else "not logged"
        rows.append((key.id, key.name, ",".join(key.rights), rate, quota, today, logged, made))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command("change")
def change(
    key_id: IdArgument,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    admin: AdminOption = None,
    rate: RateOption = None,
    quota: QuotaOption = None,
    log: LogOption = None,
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Give a key other rights or limits; the key stays the same, and running servers notice with the next request."""
    from serving.auth import GENERATE, RIGHTS, change_key

    ctx = context(recipe, overrides)
    given = {"name": name, "rate": rate, "quota": quota, "log_prompts": log}
    changes: dict[str, object] = {what: value for what, value in given.items() if value is not None}
    if admin is not None:
        changes["rights"] = RIGHTS if admin else (GENERATE,)
    if not changes:
        raise InputError("Nothing to change was named", expected="--name, --admin, --rate, --quota or --no-log")
    key = change_key(ctx.home / "keys.json", key_id, **changes)
    typer.echo(f"{key.id} ({key.name}): {', '.join(changes)} changed")


@app.command("revoke")
def revoke(key_id: IdArgument, recipe: RecipeOption = "demo", overrides: SetOption = None) -> None:
    """Take a key back; running servers refuse it from the next request on. Its rows in the logbook stay."""
    from serving.auth import revoke_key
    from serving.quota import drop_counters

    ctx = context(recipe, overrides)
    if not revoke_key(ctx.home / "keys.json", key_id):
        raise InputError(f"There is no key with the id {key_id!r}", remedy="`atelier key list` shows the ids")
    drop_counters(ctx.home / "quota", key_id)
    typer.echo(f"{key_id} revoked; `atelier erase --key {key_id}` also erases what the logbook holds of it")


def _limit(own: int | None, recipes: int) -> str:
    value = recipes if own is None else own
    return str(value) if value else "no limit"
