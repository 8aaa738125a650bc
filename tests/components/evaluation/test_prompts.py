"""Prompt sets are deterministic, held out, and of the world they claim."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from components.contracts.errors import DataError
from components.contracts.recipe import World
from components.data.world import parse
from components.evaluation.prompts import (
    heldout_prompts,
    heldout_rows,
    meaning,
    prompt_sets,
    prompts_digest,
    world_prompts,
)
from components.runtime.stage import Context
from components.runtime.storage import Artifact


def test_heldout_prompts_come_from_the_right_collection(dataset: Artifact) -> None:
    sets = heldout_prompts(dataset, 100, seed=1)
    assert list(sets) == ["known", "new"]
    rows = list(heldout_rows(dataset, ["caption", "source", "split"]))
    assert {r["split"] for r in rows} == {"holdout"}
    for name, source in (("known", 0), ("new", 1)):
        assert set(sets[name]) == {r["caption"] for r in rows if r["source"] == source}
        assert len(set(sets[name])) == len(sets[name])
    assert heldout_prompts(dataset, 5, 1)["known"] == sets["known"][:5]
    assert heldout_prompts(dataset, 100, 2)["known"] != sets["known"]


def test_world_prompts_keep_to_the_spec() -> None:
    known = world_prompts(World(leave_out=("pink", "heart")), 200, seed=0)
    assert len(set(known)) == 200 and known == world_prompts(World(leave_out=("pink", "heart")), 200, seed=0)
    assert known != world_prompts(World(leave_out=("pink", "heart")), 200, seed=1)
    assert not any("pink" in p or "heart" in p for p in known)
    new = world_prompts(World(feature=("pink", "heart"), kinds=("single", "pair")), 200, seed=0)
    assert all("pink" in p or "heart" in p for p in new)
    assert {parse(p).kind for p in new} == {"single", "pair"}


def test_a_small_world_gives_what_it_has() -> None:
    tiny = World(leave_out=("red", "orange", "yellow", "green", "cyan", "blue", "purple", "circle", "square"))
    assert 300 < len(world_prompts(tiny, 5000, 0)) <= 4 * 2 * 5 * 3 * 5
    with pytest.raises(DataError, match="nothing that could be asked for"):
        world_prompts(World(leave_out=("heart",), feature=("heart",)), 5, 0)


def test_prompt_sets_mix_worlds_and_captions(dataset: Artifact) -> None:
    old, new = World(leave_out=("heart",)), World(feature=("heart",))
    sets = prompt_sets(dataset, 12, 0, [old, new])
    assert [len(p) for p in sets.values()] == [12, 12] and all("heart" in p for p in sets["new"])
    captions = heldout_prompts(dataset, 12, 0)
    assert prompt_sets(dataset, 12, 0) == captions
    assert prompt_sets(dataset, 12, 0, [None, new]) == {"known": captions["known"], "new": sets["new"]}
    three = prompt_sets(dataset, 13, 0, [old, old, new])
    assert len(three["known"]) == 13 and three["new"][:12] == sets["new"]
    assert prompts_digest(sets) != prompts_digest(captions)


def test_no_heldout_pictures(ctx: Context, make: Callable[..., Artifact]) -> None:
    with pytest.raises(DataError, match=r"no held-out pictures.*raise prepare\.holdout"):
        heldout_prompts(make(ctx, "dataset", {"tokenizer/x": b"1"}), 5, 0)


def test_meaning() -> None:
    assert meaning("a red star on a white background") == meaning("a white picture with a red star")
    assert meaning("a red star") != meaning("a blue star")
    assert meaning("A photo  of my DOG") == meaning("a photo of my dog")
