"""finetune: continue from the champion on old and new data mixed. What a retrain is, on drift or on schedule."""

from __future__ import annotations

from components.evaluation import release as releasing
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from pipelines.assess import judge
from pipelines.collect import collect
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
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
    new = collect(ctx)
    if new.digest in {old.digest for old in past}:
        say("finetune: the source holds nothing new; the champion stays")
        return None
    dataset = prepare(ctx, [*past, new], tokenizer_from=known)
    model = train(ctx, dataset, champion=champion)
    return release(ctx, model, judge(ctx, dataset))


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """Continue the champion's training on old and new data, judge it against the champion, release it on a pass."""
    with context(recipe, overrides, debug) as ctx:
        finetune(ctx)


if __name__ == "__main__":
    run(command)
