"""Prompt sets from files as their makers publish them, and captions of the training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import DataError, InputError
from components.contracts.recipe import Recipe
from components.evaluation.prompt_sets import PromptSet, prompt_sets, read_prompts, sampled, trained_prompts
from components.evaluation.prompts import heldout_rows, rows_of
from components.runtime.stage import Context
from components.runtime.storage import Artifact

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "prompts.parquet"


def test_partiprompts_as_published(tmp_path: Path) -> None:
    text = (
        "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tx\n"
        "a sign saying \"don't walk\tArtifacts\tWriting\t\nbond\tAbstract\tBasic\tagain\n"
    )
    (tmp_path / "PartiPrompts.tsv").write_text(text)
    found = read_prompts(str(tmp_path / "PartiPrompts.tsv"), "parti")
    assert found.prompts == ("bond", "a sign saying \"don't walk") and found.categories == ("Abstract", "Artifacts")


def test_geneval_as_published(tmp_path: Path) -> None:
    rows = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "counting", "include": [], "exclude": [], "prompt": "a photo of two clocks"},
    ]
    (tmp_path / "evaluation_metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = read_prompts(str(tmp_path / "evaluation_metadata.jsonl"), "geneval")
    assert dict(zip(found.prompts, found.categories, strict=True)) == {
        "a photo of a bench": "single_object", "a photo of two clocks": "counting",
    }  # fmt: skip


def test_dpg_as_published(tmp_path: Path) -> None:
    (tmp_path / "dpg.csv").write_text(
        "item_id,text,keywords,proposition_id,category_broad\n"
        '1,"A cat, seated.",k,1,entity\n1,"A cat, seated.",k,2,attribute\n2,A dog.,k,1,entity\n'
    )
    assert read_prompts(str(tmp_path / "dpg.csv"), "dpg").prompts == ("A cat, seated.", "A dog.")
    (tmp_path / "prompts").mkdir()
    for name, text in (("b.txt", "Two\nlines.\n"), ("a.txt", "\ufeffOne."), ("c.md", "not this")):
        (tmp_path / "prompts" / name).write_text(text, encoding="utf-8")
    assert read_prompts(str(tmp_path / "prompts"), "dpg") == PromptSet(("One.", "Two lines."), (None, None))


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  two   words \none\n")
    assert read_prompts(str(tmp_path / "a.txt"), "a").prompts == ("one", "two words")
    (tmp_path / "b.json").write_text(json.dumps(["one", {"prompt": "two", "category": "c"}]))
    assert read_prompts(str(tmp_path / "b.json"), "b").categories == (None, "c")
    table = {"prompt": ["x", "y", "z"], "set": ["mine", "other", "mine"], "category": ["p", "q", None]}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    assert read_prompts(str(tmp_path / "c.parquet"), "mine") == PromptSet(("x", "z"), ("p", None))
    assert len(read_prompts(str(tmp_path / "c.parquet"), "everything").prompts) == 3


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", b"\n \n", "has no prompts"),
        ("a.docx", b"x", "is not a folder of .txt files"),
        ("bad.jsonl", b'{"prompt": "a"}\n{broken', "cannot be read"),
        ("odd.json", b"[1]", "where an object with a prompt is expected"),
        ("other.csv", b"a,b\n1,2\n", "has no column prompt or text or caption, only a, b"),
        ("bytes.txt", b"\xff\xfe\xff", "cannot be read"),
        ("long.txt", b"word " * 1000, "4999 characters"),
        ("x.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, data: bytes | None, problem: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=r"assess\.prompt_sets\.mine: .*Remedy: correct") as caught:
        read_prompts(str(tmp_path / name), "mine")
    assert problem in str(caught.value)


def test_a_part_has_each_category_in_its_share() -> None:
    whole = PromptSet(tuple(f"p{i}" for i in range(400)), tuple("abbb"[i % 4] for i in range(400)))
    part = sampled(whole, 40, seed=1)
    assert len(part.prompts) == 40 and Counter(part.categories) == {"a": 10, "b": 30}
    assert all(whole.categories[int(p[1:])] == c for p, c in zip(part.prompts, part.categories, strict=True))
    assert part == sampled(whole, 40, seed=1) != sampled(whole, 40, seed=2)
    assert sampled(whole, 400, 1) == whole


def test_all_sets_of_an_assessment(ctx: Context, dataset: Artifact, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(30)))
    (tmp_path / "a.csv").write_text("prompt,category\none,x\ntwo,y\n")
    told = {
        "prompts": 8, "memorisation_prompts": 5,
        "prompt_sets": {"zoo": str(tmp_path / "p.txt"), "abc": str(tmp_path / "a.csv")},
    }  # fmt: skip
    recipe = Recipe.model_validate(ctx.recipe.model_dump(mode="json") | {"assess": told})
    sets = prompt_sets(Context(recipe, ctx.store, ctx.home), dataset)
    assert list(sets) == ["known", "new", "abc", "zoo", "trained"], "files by name, the training's captions last"
    assert len(sets["zoo"].prompts) == 8 and sets["abc"].categories == ("x", "y")
    assert set(sets["known"].categories) <= {"single", "pair", "count"}, "of the embedded world: kinds of scenes"
    rows = {str(r["id"]): r["caption"] for r in rows_of(dataset, "train", ["id", "caption"])}
    held_out = {r["caption"] for r in heldout_rows(dataset, ["caption"])}
    assert len(sets["trained"].prompts) == 5 and set(sets["trained"].prompts) <= set(rows.values()) - held_out


def test_captions_of_the_training_are_of_pictures_that_the_judge_keeps(
    ctx: Context, dataset: Artifact, make: Callable[..., Artifact]
) -> None:
    rows = sorted((str(r["id"]), r["caption"]) for r in rows_of(dataset, "train", ["id", "caption"]))
    first = list(dict.fromkeys(caption for _, caption in rows))[:7]
    assert trained_prompts(dataset, 7) == first
    with pytest.raises(DataError, match="no training captions"):
        trained_prompts(make(ctx, "dataset", {"x": b""}), 3)


@pytest.mark.parametrize("told", [{"known": "a"}, {"trained": "a"}, {"two words": "a"}])
def test_names_of_sets(told: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a prompt set cannot be called"):
        Recipe.model_validate({"name": "t", "assess": {"prompt_sets": told}})


def test_published_sets_from_one_table() -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    for name, count, category in (("partiprompts", 1600, "Animals"), ("geneval", 540, "counting")):
        found = read_prompts(str(SHARED), name)
        assert len(found.prompts) >= count and category in found.categories
    assert len(read_prompts(str(SHARED), "dpg_bench").prompts) > 1000
