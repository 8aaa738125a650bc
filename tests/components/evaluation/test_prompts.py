"""Prompt sets are deterministic, held out, and of the world they claim."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import DataError
from components.contracts.recipe import Recipe, World
from components.data.world import parse
from components.evaluation.judge import Judge, make_judge
from components.evaluation.prompts import (
    caption_prompts,
    heldout_prompts,
    heldout_rows,
    meaning,
    pictures_of,
    prompts_digest,
    world_prompts,
)
from components.runtime.stage import Context
from components.runtime.storage import Artifact


def test_heldout_prompts_come_from_the_right_collection(dataset: Artifact) -> None:
    sets = caption_prompts(dataset, 100, seed=1)
    assert list(sets) == ["known", "new"]
    rows = list(heldout_rows(dataset, ["caption", "source", "split"]))
    assert {r["split"] for r in rows} == {"holdout"}
    for name, source in (("known", 0), ("new", 1)):
        assert set(sets[name]) == {r["caption"] for r in rows if r["source"] == source}
        assert len(set(sets[name])) == len(sets[name])
    assert caption_prompts(dataset, 5, 1)["known"] == sets["known"][:5]
    assert caption_prompts(dataset, 100, 2)["known"] != sets["known"]


def test_all_captions_are_asked_for_and_know_their_picture(
    ctx: Context, make: Callable[..., Artifact], dataset_files: dict[str, bytes], clip: Artifact
) -> None:
    """With several captions a picture every one may be a prompt, and the judge remembers which belong together."""
    files = {}
    for name, data in dataset_files.items():
        if name.startswith("data/"):
            table = pq.read_table(io.BytesIO(data))
            also = [
                [f"{c}, seen again", f"once more {c}"] if i % 2 else None
                for i, c in enumerate(table["caption"].to_pylist())
            ]
            at = table.schema.get_field_index("alternatives")
            out = io.BytesIO()
            pq.write_table(table.set_column(at, table.schema.field(at), pa.array(also, pa.list_(pa.string()))), out)
            data = out.getvalue()
        files[name] = data
    several, single = make(ctx, "dataset", files), make(ctx, "dataset", dataset_files)
    sets = caption_prompts(several, 1000, seed=1)
    rows = list(heldout_rows(several, ["id", "caption", "alternatives"]))
    assert {p for prompts in sets.values() for p in prompts} == {
        c for row in rows for c in (row["caption"], *(row["alternatives"] or ()))
    }
    owners = pictures_of(several, sets)
    said = {row["id"]: {row["caption"], *(row["alternatives"] or ())} for row in rows}
    for name, prompts in sets.items():
        assert all(prompt in said[str(owner)] for prompt, owner in zip(prompts, owners[name], strict=True))
    assert pictures_of(several, {"mine": ["a prompt of nobody"]}) == {"mine": [None]}
    assert pictures_of(single, sets) == {}
    assert Judge.read(make_judge(ctx, clip, several, sets)).pictures == owners
    assert Judge.read(make_judge(ctx, clip, single, caption_prompts(single, 9, 1))).pictures == {}


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


def in_world(ctx: Context, **world: object) -> Context:
    tree = ctx.recipe.model_dump(mode="json") | {"collect": {"world": world}, "assess": {"prompts": 40}}
    return Context(Recipe.model_validate(tree), ctx.store, ctx.home)


def test_sets_of_a_world(ctx: Context, dataset: Artifact) -> None:
    grown = heldout_prompts(in_world(ctx, feature=["heart", "pink"]), dataset)
    assert {name: len(p) for name, p in grown.items()} == {"known": 40, "new": 40}
    assert all("heart" in p or "pink" in p for p in grown["new"])
    assert not any("heart" in p or "pink" in p for p in grown["known"])
    first = heldout_prompts(in_world(ctx, leave_out=["heart", "pink"]), dataset)
    assert first["known"] == grown["known"], "what the first edition shows is what the grown one calls known"
    assert prompts_digest(first) != prompts_digest(grown)
    assert heldout_prompts(ctx, dataset) == caption_prompts(dataset, 512, 0), "no world: captions"


def test_no_heldout_pictures(ctx: Context, make: Callable[..., Artifact]) -> None:
    with pytest.raises(DataError, match=r"no held-out pictures.*raise prepare\.holdout"):
        heldout_prompts(ctx, make(ctx, "dataset", {"tokenizer/x": b"1"}))


def test_meaning() -> None:
    assert meaning("a red star on a white background") == meaning("a white picture with a red star")
    assert meaning("a red star") != meaning("a blue star")
    assert meaning("A photo  of my DOG") == meaning("a photo of my dog")
