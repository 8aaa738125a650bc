"""demo: the whole story on the embedded world, from an empty folder to a second, better release."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from components.contracts.errors import GateRefused
from components.contracts.recipe import Recipe
from components.evaluation import release as releasing
from components.evaluation.prompts import world_prompts
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact, write_bytes
from monitoring import report as reporting
from monitoring import watch as watching
from pipelines.end_to_end import end_to_end
from pipelines.finetune import finetune
from pipelines.options import DebugOption, RecipeOption, SetOption, context, run
from pipelines.watch import watch

ORDINARY, UNSEEN = 90, 110  # requests before the drift, and with the concepts the first model never saw
TRICKLE_S = 2.0  # between two requests while the second model is trained on the same two cores


def later(recipe: Recipe) -> Recipe:
    """The recipe when the website has grown: its new pages show what the first edition left out."""
    world = recipe.collect.world
    assert world is not None, "the demo's recipe collects from the embedded world"
    edition = {
        "leave_out": [],
        "feature": list(world.leave_out),
        "pictures": max(1, round(world.pictures * 0.55)),
        "prefix": "b",
    }
    tree = recipe.model_dump(mode="json")
    tree["collect"]["world"] |= edition
    return Recipe.model_validate(tree)


def demo(ctx: Context) -> dict[str, Any]:
    """Run the story, write ``report.html`` and ``summary.json`` into the recipe's folder, return the summary."""
    from serving import app, client
    from serving.auth import make_key
    from serving.logbook import read_logbook

    grown = Context(later(ctx.recipe), ctx.store, ctx.home, ctx.seconds)
    known, new = ctx.recipe.collect.world, grown.recipe.collect.world
    assert known is not None and new is not None
    first = end_to_end(ctx)
    releasing.require_pass(first)
    drift = _remembered(ctx, "drift")
    with ctx.timed("serve"):
        server = app.start(ctx)
    reports: list[client.Report] = []
    stop = threading.Event()
    try:
        key = make_key(ctx.home / "keys.json", "demo")
        ask = partial(client.ask, server.url, key)
        old_prompts = world_prompts(known, ORDINARY, ctx.recipe.seed, stream=77)
        if drift is None:
            with ctx.timed("traffic"):
                say("demo: ordinary prompts")
                reports.append(ask(old_prompts, 8))
                say("demo: prompts with concepts that the model has never seen")
                reports.append(ask(world_prompts(new, UNSEEN, ctx.recipe.seed, stream=78), 8))
                server.flush_logbook()
            drift = watch(ctx)
            _remember(ctx, "drift", drift)
        decision = watching.decision_of(drift)
        say(f"watch: {decision.action}: {'; '.join(decision.reasons)}")
        if decision.action != "retrain":
            raise GateRefused(
                f"The watch decided to {decision.action}",
                expected="retrain, after prompts with unseen concepts",
            )
        with ThreadPoolExecutor(1) as pool:  # requests keep flowing while the second model is made
            flow: Future[client.Report] = pool.submit(ask, old_prompts, 1, until=stop, pause_s=TRICKLE_S)
            try:
                second = finetune(grown)
                champion = releasing.require_champion(ctx)[0]
                with ctx.timed("switch"):
                    server.wait_for(champion.version)
                    reports.append(ask(old_prompts[:40], 8))
            finally:
                stop.set()
            reports.append(flow.result())
        server.flush_logbook()
    finally:
        server.stop()
    records = [first, second] if second else [first]
    failures = sum(report.failed for report in reports)
    with ctx.timed("report"):
        return reporting.write(ctx, records, drift, read_logbook(ctx.home / "logbook"), failures)


def _remembered(ctx: Context, kind: str) -> Artifact | None:
    """The artifact of that kind from an earlier, interrupted telling of the story."""
    path = ctx.home / "story.json"
    story = json.loads(path.read_text()) if path.exists() else {}
    return ctx.store.by_digest(kind, story[kind]) if kind in story else None


def _remember(ctx: Context, kind: str, artifact: Artifact) -> None:
    write_bytes(str(ctx.home / "story.json"), json.dumps({kind: artifact.digest}).encode())


def command(recipe: RecipeOption = "demo", overrides: SetOption = None, debug: DebugOption = False) -> None:
    """The whole story on two cores in 10 to 30 minutes: train, serve, drift, retrain, replace; then a report."""
    ctx = context(recipe, overrides, debug)
    done = ctx.home / "summary.json"
    if done.exists() and json.loads(done.read_text())["loop_closed"]:
        say(f"demo: already done; see {ctx.home / 'report.html'} (remove {ctx.home} to see it happen again)")
        return
    with ctx:
        summary = demo(ctx)
    say(f"demo: {ctx.home / 'report.html'}")
    if not summary["loop_closed"]:
        raise GateRefused(
            f"The loop did not close: {'; '.join(summary['open'])}",
            remedy=f"see {ctx.home / 'report.html'} for each step",
        )


if __name__ == "__main__":
    run(command)
