"""Prompt sets: what a model is asked to draw when it is judged.

A set is a name and a list of distinct prompts. ``known`` asks for what the older collections show, ``new``
for what only the newest one shows; with a single collection there is only ``known``. Further sets are made by
:mod:`components.evaluation.prompt_sets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from components.contracts.errors import DataError
from components.contracts.manifest import canonical_json, sha256_text
from components.contracts.recipe import World
from components.runtime.stage import Context
from components.runtime.storage import Artifact

KNOWN, NEW = "known", "new"
TRAINED = "trained"  # captions of the training: what is memorised shows there, and nothing is compared on it
_WORLD_STREAM = 0x9A11  # keeps the judge's scenes on a random stream that no website draws its pictures from


def heldout_prompts(ctx: Context, dataset: Artifact) -> dict[str, list[str]]:
    """The prompt sets for judging models of ``dataset``, at most ``assess.prompts`` each; deterministic.

    Where the recipe collects from the embedded world, fresh prompts of it, none of which is a training caption:
    ``new`` of what the recipe's edition of the website shows, ``known`` of the same without the featured words.
    Elsewhere captions of the held-out split.

    Raises:
        DataError: the dataset holds no held-out captions.
    """
    recipe = ctx.recipe
    n, seed, world = recipe.assess.prompts, recipe.seed, recipe.collect.world
    sets = caption_prompts(dataset, n, seed)
    if world is None or not recipe.assess.world_prompts:
        return sets
    shown = {KNOWN: world}
    if NEW in sets:
        ordinary = {"leave_out": tuple(dict.fromkeys((*world.leave_out, *world.feature))), "feature": ()}
        shown = {KNOWN: world.model_copy(update=ordinary), NEW: world}
    trained = frozenset(row["caption"] for row in rows_of(dataset, "train", ["caption"]))
    return {name: world_prompts(part, n, seed, stream, trained) for stream, (name, part) in enumerate(shown.items())}


def caption_prompts(dataset: Artifact, n: int, seed: int) -> dict[str, list[str]]:
    """Up to ``n`` distinct captions a set, drawn from all captions of the held-out pictures of the dataset.

    Raises:
        DataError: nothing is held out.
    """
    by_source: dict[int, set[str]] = {}
    for row in heldout_rows(dataset, ["caption", "alternatives", "source"]):
        by_source.setdefault(row["source"], set()).update([row["caption"], *(row["alternatives"] or ())])
    sets: dict[str, list[str]] = {}
    for name, sources in split_sources(by_source).items():
        captions = sorted(set().union(*(by_source[s] for s in sources)))
        order = np.random.default_rng([seed, len(sets)]).permutation(len(captions))
        sets[name] = [captions[i] for i in order[:n]]
    if not sets:
        raise DataError(
            f"The dataset {dataset.short} has no held-out pictures",
            expected="at least one duplicate cluster kept out of training",
            remedy="raise prepare.holdout or collect more pictures",
        )
    return sets


def pictures_of(dataset: Artifact, sets: dict[str, list[str]]) -> dict[str, list[str | None]]:
    """For every prompt the id of the first held-out picture that it is a caption of, None if of none.

    Empty where no held-out picture has several captions: then each prompt stands for itself.
    """
    owner: dict[str, str] = {}
    several = False
    for row in sorted(heldout_rows(dataset, ["id", "caption", "alternatives"]), key=lambda row: str(row["id"])):
        for caption in (row["caption"], *(row["alternatives"] or ())):
            owner.setdefault(caption, row["id"])
        several |= bool(row["alternatives"])
    return {name: [owner.get(prompt) for prompt in prompts] for name, prompts in sets.items()} if several else {}


def split_sources(sources: Iterable[int]) -> dict[str, list[int]]:
    """Which collections belong to which set: the newest alone is ``new`` when there is more than one."""
    ordered = sorted(set(sources))
    if len(ordered) > 1:
        return {KNOWN: ordered[:-1], NEW: ordered[-1:]}
    return {KNOWN: ordered} if ordered else {}


def primary(names: Iterable[str]) -> str:
    """The set that floors, limits and the Fréchet rule read: ``known``, or the first that is not of the training."""
    found = list(names)
    return KNOWN if KNOWN in found else next((name for name in found if name != TRAINED), found[0])


def heldout_rows(dataset: Artifact, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The held-out rows of the dataset, file by file in order of name."""
    return rows_of(dataset, "holdout", columns)


def rows_of(dataset: Artifact, split: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of one split of the dataset, file by file in order of name."""
    import pyarrow.parquet as pq

    for path in dataset.paths("data/part-"):
        table = pq.read_table(path, columns=columns, filters=[("split", "==", split)])
        yield from table.to_pylist()


def world_prompts(world: World, n: int, seed: int, stream: int = 0, exclude: frozenset[str] = frozenset()) -> list[str]:
    """Up to ``n`` distinct prompts of whole scenes that a website with this ``world`` could show.

    None of them is in ``exclude``. Nothing in ``leave_out`` is asked for; with ``feature`` every prompt names at
    least one featured word. There are fewer than ``n`` only when the world is too small to say more.

    Raises:
        DataError: the world shows nothing at all, as when a featured word is left out.
    """
    from components.data.world import Scene, WorldSpec, phrasings, sample_scene

    def words(scene: Scene) -> set[str | None]:
        said: set[str | None] = {scene.kind, scene.background}
        return said.union(*((i.shape, i.colour, i.size, i.place) for i in scene.items))

    spec = WorldSpec(kinds=world.kinds).without(*world.leave_out)
    featured = set(world.feature)
    rng = np.random.default_rng([_WORLD_STREAM, seed, stream])
    found: dict[str, None] = {}
    misses = 0
    while len(found) < n and misses < 2000 + 10 * len(found):
        scene = sample_scene(rng, spec)
        ways = phrasings(scene)
        prompt = ways[int(rng.integers(len(ways)))]
        if prompt in found or prompt in exclude or (featured and not featured & words(scene)):
            misses += 1
        else:
            found[prompt] = None
            misses = 0
    if not found:
        raise DataError(
            "The world of the recipe shows nothing that could be asked for",
            expected="featured words that the world does not leave out",
            remedy="correct collect.world.feature and collect.world.leave_out",
        )
    return list(found)


def prompts_digest(sets: dict[str, list[str]]) -> str:
    """SHA-256 over names and prompts, in order."""
    return sha256_text(canonical_json(sets))


def meaning(prompt: str) -> str:
    """A key that is equal for prompts that ask for the same thing.

    Two phrasings of one scene of the embedded world are equal; other prompts are equal when they differ in
    case and spacing only.
    """
    from components.data.world import parse

    try:
        return repr(parse(prompt))
    except ValueError:
        return " ".join(prompt.casefold().split())
