"""forget: take samples down, everywhere in the store, for good."""

from __future__ import annotations

from typing import Annotated

import typer

from components.contracts.errors import InputError, RegistryError
from components.data import forgetting
from components.data.takedown import rule
from components.data.takedown_list import read_rules
from components.data.takedown_report import Report, lines
from components.evaluation import release as releasing
from components.runtime.stage import Context
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run


def forget(ctx: Context, rules: list[str], near: bool = False, dry_run: bool = False) -> Report:
    """Take down what the rules name and report what has learned from it."""
    return forgetting.forget(ctx, rules, near=near, dry_run=dry_run, versions=lambda: releasing.versions(ctx))


def command(
    recipe: RecipeOption = "demo",
    url: Annotated[list[str] | None, typer.Option(help="Address of a picture. Repeatable.")] = None,
    sha256: Annotated[list[str] | None, typer.Option(help="SHA-256 of a picture's bytes. Repeatable.")] = None,
    host: Annotated[list[str] | None, typer.Option(help="A host and its subdomains. Repeatable.")] = None,
    file: Annotated[
        str | None, typer.Option("--list", help="File of URLs, SHA-256s and hosts: txt, csv, tsv, jsonl or parquet.")
    ] = None,
    near: Annotated[bool, typer.Option("--near", help="Take near-duplicates of them down as well.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; change nothing.")] = False,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Remove pictures and their captions from everything in the store, block their return, and say which models
    have learned from them. The command can be run again at any time; a killed one is completed that way."""
    given = {"url": url, "sha256": sha256, "host": host}
    rules = [rule(kind, value) for kind, values in given.items() for value in values or ()]
    rules += read_rules(file) if file is not None else []
    if not rules:
        raise InputError("Nothing to forget was named", expected="--url, --sha256, --host or --list")
    report = forget(context(recipe, overrides, debug), list(dict.fromkeys(rules)), near, dry_run)
    for line in lines(report):
        typer.echo(line)
    if report.unasked is not None:
        raise RegistryError(
            f"Which registered versions are concerned is not known: {report.unasked}",
            remedy="run the same command again when the registry can be reached; everything else is done",
        )


if __name__ == "__main__":
    run(command)
