"""Commands that look at what a recipe has made, and use it: status, generate, inspect, recipe, key."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from components.contracts.errors import ArtifactError, InputError
from components.evaluation import release as releasing
from components.evaluation.styles import find_style
from components.models.adapters import WEIGHTS
from components.runtime.lineage import digests
from components.runtime.storage import Artifact
from pipelines.options import DebugOption, RecipeOption, SetOption, context

_MOST_SIDES = 8  # times the side of the pictures that the model was trained on


def status(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """What the store holds, what it was made from, and which version is the champion."""
    from rich.console import Console
    from rich.table import Table

    ctx = context(recipe, overrides, debug)
    artifacts = ctx.store.list()
    names = {digest: a.short for a in artifacts for digest in digests(a)}
    table = Table(title=f"Artifacts in {ctx.store.url}", title_justify="left", box=None, header_style="dim")
    for column in ("artifact", "made", "holds", "made from"):
        table.add_column(column, overflow="fold")
    for artifact in artifacts:
        manifest = artifact.manifest
        table.add_row(
            artifact.short,
            manifest.created_at[:16].replace("T", " "),
            ", ".join(f"{n} {what}" for what, n in manifest.counts.items()),
            ", ".join(names.get(d, d[:12]) for d in manifest.inputs.values()),
        )
    console = Console()
    console.print(table if artifacts else f"Nothing yet in {ctx.store.url}: start with `atelier run --recipe {recipe}`")
    if not (ctx.recipe.run.registry or (ctx.home / "mlflow.db").exists()):
        return
    versions = Table(
        title=f"Versions of {ctx.recipe.release.model_name}",
        title_justify="left",
        box=None,
        header_style="dim",
    )
    for column in ("version", "alias", "verdict", "model", "reasons"):
        versions.add_column(column, overflow="fold")
    for version in releasing.versions(ctx):
        tags = version.tags
        versions.add_row(
            str(version.version),
            ", ".join(version.aliases),
            tags.get("forced") or tags.get("verdict", "?"),
            tags.get("model_digest", "")[:12],
            tags.get("reasons", ""),
        )
    console.print()
    console.print(versions)


def generate(
    prompt: Annotated[str, typer.Argument(help='What to draw, e.g. "a red star".')],
    recipe: RecipeOption = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path("generated.png"),
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=64, help="Pictures, side by side.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the first picture; the next ones count up.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps; default of the recipe.")] = None,
    guidance: Annotated[float | None, typer.Option(min=1.0, max=50.0, help="Guidance scale.")] = None,
    negative: Annotated[str, typer.Option(help="Prompt to lead away from.")] = "",
    sampler: Annotated[str | None, typer.Option(help="dpm++ (default), euler or unipc.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels; default of the model.")] = None,
    style: Annotated[str | None, typer.Option(help="Of `atelier finetune --list`, by its name.")] = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Draw a prompt with the champion, here and now, without a server."""
    import numpy as np
    from PIL import Image

    from components.models.families import load_generator
    from components.models.stepping import Style

    ctx = context(recipe, overrides, debug)
    if not prompt.strip():
        raise InputError("The prompt is empty", remedy='say what to draw, such as "a red star"')
    if any("\ud800" <= c <= "\udfff" for c in prompt):  # bytes of the command line that are no text
        raise InputError("The prompt is not UTF-8", remedy="write it in UTF-8, or set the terminal to it")
    if not output.absolute().parent.is_dir():
        raise InputError(f"The folder of {output} does not exist", remedy="make it, or choose another --output")
    version, model = releasing.require_champion(ctx)
    model.verify()
    adapter = find_style(ctx, style, model.digest) if style else None
    generator = load_generator(model.local())
    wanted = _size(size, generator.image_size) if size else None
    started = time.monotonic()
    images = generator.generate(
        [prompt] * number,
        list(range(seed, seed + number)),
        steps=steps or ctx.recipe.serve.default_steps,
        guidance_scale=guidance or ctx.recipe.serve.default_guidance,
        negative_prompts=[negative] * number if negative else None,
        sampler=sampler,
        size=wanted,
        style=Style(adapter.digest, adapter.path("model/" + WEIGHTS).parent) if adapter else None,
    )
    sheet = Image.fromarray(np.concatenate(list(images), axis=1))
    scale = max(1, 256 // generator.image_size)
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST).save(output)
    typer.echo(f"{output}: {number} by version {version.version} in {time.monotonic() - started:.1f} s")
    if generator.truncated(prompt):
        typer.echo("note: the prompt is longer than the text encoder reads; its end was left out", err=True)


def _size(text: str, own: int) -> tuple[int, int]:
    """Width and height as the user wrote them; memory grows with the square of their product, so there is an end."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None or max(int(match[1]), int(match[2])) > _MOST_SIDES * own:
        raise InputError(
            f"--size is {text[:40]!r}",
            expected=f"WIDTHxHEIGHT in pixels, each at most {_MOST_SIDES * own}, such as {own}x{own}",
            remedy="choose another size",
        )
    return int(match[1]), int(match[2])


def inspect(
    what: Annotated[str, typer.Argument(help="What to look at: dataset or duplicates.")] = "dataset",
    recipe: RecipeOption = "demo",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; default in runs/NAME.")] = None,
    overrides: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Write an HTML page about the newest dataset: its funnel, scores and samples, or its clusters of duplicates."""
    ctx = context(recipe, overrides, debug)
    if what not in ("dataset", "duplicates"):
        raise InputError(f"Nothing to inspect by the name {what!r}", expected="dataset or duplicates")
    datasets = ctx.store.list("dataset")
    if not datasets:
        raise ArtifactError(
            f"{ctx.store.url} holds no dataset", remedy=f"run `atelier prepare --recipe {recipe}` first"
        )
    dataset, target = datasets[-1], output or ctx.home / f"{what}.html"

    def inputs(kind: str) -> list[Artifact]:
        roles = sorted(role for role in dataset.manifest.inputs if role.startswith(f"{kind}_"))
        return [ctx.store.by_digest(kind, dataset.manifest.inputs[role]) for role in roles]

    if what == "dataset":
        from components.data.inspecting import inspect_dataset

        page = inspect_dataset(dataset, inputs("collection"), inputs("scores"), target)
    else:
        from components.data.inspecting_duplicates import inspect_duplicates

        page = inspect_duplicates(dataset, inputs("collection"), target)
    typer.echo(str(page))


def recipe(
    name: Annotated[str, typer.Argument(help="Built-in recipe or the path of a YAML file.")] = "demo",
    overrides: SetOption = None,
) -> None:
    """Print a recipe with every key and default filled in: what `--set` and a file of your own may change."""
    import yaml

    from components.runtime.recipes import load_recipe

    typer.echo(yaml.safe_dump(load_recipe(name, overrides or ()).model_dump(mode="json"), sort_keys=False), nl=False)


def serve_parquet(parquet: Path, list_path: Path, caption_column: str, port: int) -> None:
    """Serve a parquet file's pictures until stopped, and write the list of their URLs and captions."""
    import threading

    from components.data.sources import parquet_site

    with parquet_site(str(parquet), caption_column, port) as source:
        source.write_list(list_path)
        typer.echo(f"{source.urls.num_rows} pictures at {source.allow_hosts[0]}; list in {list_path}; Ctrl-C stops")
        threading.Event().wait()
