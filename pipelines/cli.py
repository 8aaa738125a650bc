"""The `atelier` command: one subcommand a stage, and a few to look at what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import (
    assess,
    collect,
    demo,
    deploy,
    end_to_end,
    finetune,
    forget,
    keys,
    lineage,
    looking,
    origin,
    prepare,
    release,
    rollout,
    train,
    watch,
)
from pipelines.options import run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train your own text-to-image model and keep it good.

    The loop: collect -> prepare -> train -> assess -> release -> serve -> watch, and train again on drift.
    A stage that is done is not done again; a stage that was killed goes on where it was. Each stage does first
    what it needs, so `atelier run` and `atelier release` come to the same.

    Everything of a recipe goes to runs/NAME: artifacts, registry, reports. Start with:

        atelier demo                                  the whole story on the embedded world

        atelier run --recipe demo                     the stages up to a released model

        atelier serve --recipe demo                   then open http://127.0.0.1:8000/

        atelier generate "a red star" --recipe demo   one picture, without a server
    """,
)

STAGES = "The loop, stage by stage"
LOOK = "Look and use"

app.command("run", rich_help_panel=STAGES)(end_to_end.command)
app.command("collect", rich_help_panel=STAGES)(collect.command)
app.command("prepare", rich_help_panel=STAGES)(prepare.command)
app.command("train", rich_help_panel=STAGES)(train.command)
app.command("assess", rich_help_panel=STAGES)(assess.command)
app.command("release", rich_help_panel=STAGES)(release.command)
app.command("serve", rich_help_panel=STAGES)(deploy.command)
app.command("rollout", rich_help_panel=STAGES)(rollout.command)
app.command("watch", rich_help_panel=STAGES)(watch.command)
app.command("finetune", rich_help_panel=STAGES)(finetune.command)
app.command("demo", rich_help_panel=LOOK)(demo.command)
app.command("status", rich_help_panel=LOOK)(looking.status)
app.command("generate", rich_help_panel=LOOK)(looking.generate)
app.command("lineage", rich_help_panel=LOOK)(lineage.command)
app.command("inspect", rich_help_panel=LOOK)(looking.inspect)
app.command("forget", rich_help_panel=LOOK)(forget.command)
app.command("recipe", rich_help_panel=LOOK)(looking.recipe)
app.add_typer(keys.app, name="key", rich_help_panel=LOOK)
app.command("verify", rich_help_panel=LOOK)(origin.verify)
app.command("erase", rich_help_panel=LOOK)(origin.erase)


@app.command("site", rich_help_panel=LOOK)
def site(
    parquet: Annotated[Path, typer.Argument(help="Parquet file with a `bytes` column of images and captions.")],
    list_path: Annotated[Path, typer.Option("--list", help="Where to write the URL and caption list.")],
    caption_column: Annotated[str, typer.Option(help="Column with the captions.")] = "caption",
    port: Annotated[int, typer.Option(help="Loopback port to serve on.")] = 8766,
) -> None:
    """Serve the pictures of a parquet file over loopback HTTP, as a website to collect from, until stopped."""
    looking.serve_parquet(parquet, list_path, caption_column, port)


def main() -> None:
    """Entry point of the `atelier` command."""
    run(app)


if __name__ == "__main__":
    main()
