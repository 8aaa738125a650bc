"""finetune: continue from the champion on old and new data mixed. What a retrain is, on drift or on schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from components.contracts.errors import InputError
from components.evaluation import release as releasing
from components.evaluation.registry import CHAMPION
from components.evaluation.styles import fitting, styles
from components.runtime.progress import say
from components.runtime.recording import recorded
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.assess import judge
from pipelines.collect import collect
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.personalize import personalize
from pipelines.prepare import prepare
from pipelines.release import release
from pipelines.train import train


def finetune(ctx: Context) -> Artifact | None:
    """Collect what the source holds now, train on from the champion, judge both, release.

    Returns the release record, or None when the source holds nothing that the champion has not seen.
    """
    _, champion = releasing.require_champion(ctx)
    known = ctx.store.by_digest("dataset", champion.manifest.inputs["dataset"])
    past = [
        ctx.store.by_digest("collection", d)
        for role, d in sorted(known.manifest.inputs.items())
        if "collection" in role
    ]
    with recorded(ctx, "retrain", champion=champion.digest[:12]):
        new = collect(ctx)
        if new.digest in {old.digest for old in past}:
            say("finetune: the source holds nothing new; the champion stays")
            return None
        dataset = prepare(ctx, [*past, new], tokenizer_from=known)
        model = train(ctx, dataset, champion=champion)
        return release(ctx, model, judge(ctx, dataset))


def command(
    recipe: RecipeOption = "demo",
    overrides: SetOption = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of pictures of a subject or a style: train a LoRA on them instead.")
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help='What they show, where no caption lies beside them: "a picture of sks".')
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the style; default: the caption's last word.")] = None,
    model: Annotated[str, typer.Option(help="To train it on: champion, a version's number, or a folder.")] = CHAMPION,
    prior: Annotated[
        list[str] | None,
        typer.Option(help='Class of the subject, to be kept as it is: "a picture of a dog". Repeatable.'),
    ] = None,
    prior_images: Annotated[int | None, typer.Option(min=1, help="Pictures that the model draws of it.")] = None,
    prior_weight: Annotated[float | None, typer.Option(min=1e-6, help="Of these in the loss.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show the styles that are registered.")] = False,
    debug: DebugOption = False,
) -> None:
    """Continue the champion's training on old and new data, judge it against the champion, release it on a pass.

    With --images: personalize instead. A LoRA on a few pictures of a subject or a style becomes an adapter of its base
    version, which the server and `atelier generate` use by its name:

        atelier finetune --images photos/ --caption "a picture of sks" --prior "a picture of a dog"
    """
    changes = {"prior": tuple(prior) if prior else None, "prior_images": prior_images, "prior_weight": prior_weight}
    given = {key: value for key, value in changes.items() if value is not None}
    with context(recipe, overrides, debug) as ctx:
        if listing:
            show_styles(ctx)
        elif images is None:
            if stray := [
                f"--{word}" for word, value in (("caption", caption), ("name", name), *given.items()) if value
            ]:
                raise InputError(
                    f"{', '.join(stray).replace('_', '-')} without --images", remedy="name a folder with --images"
                )
            finetune(ctx)
        else:
            adapter = ctx.recipe.adapter.model_copy(update=given)
            ctx.recipe = ctx.recipe.model_copy(update={"adapter": adapter})
            style = personalize(ctx, images, caption, name, model)
            say(f'style: ask for it with "style": "{style.name}", or try `atelier generate --style {style.name}`')


def show_styles(ctx: Context) -> None:
    """Print the registered adapters, with the version of the model that each fits."""
    from rich.console import Console
    from rich.table import Table

    found, champion = styles(ctx), releasing.champion(ctx)
    if not found:
        say(f"No style of {ctx.recipe.release.model_name} yet: make one with `atelier finetune --images FOLDER`")
        return
    table = Table(box=None, header_style="dim")
    for column in ("style", "caption", "fits version", "serves", "adapter"):
        table.add_column(column, overflow="fold")
    served = fitting(found, champion[1].digest) if champion else {}
    for style in found:
        now = "yes" if served.get(style.name) == style else "no"
        table.add_row(style.name, style.caption, style.base_version or style.base[:12], now, style.digest[:12])
    Console().print(table)


if __name__ == "__main__":
    run(command)
