"""Recipes: every built-in one loads, and every mistake is named."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.errors import RecipeError
from components.runtime.recipes import load_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_load(name: str) -> None:
    assert load_recipe(name).name == name


def test_there_are_recipes() -> None:
    assert {"demo", "emoji"} <= set(recipe_names())


def test_overrides() -> None:
    recipe = load_recipe("demo", ["train.denoiser.images=200000", "collect.urls=null", "run.root=/x"])
    assert recipe.train.denoiser.images == 200_000 and recipe.run.root == "/x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.denoiser.image=1", r"unknown key 'train\.denoiser\.image'; did you mean 'images'"),
        ("nonsense.x=1", "unknown key 'nonsense'"),
        ("train.denoiser.images=-3", r"train\.denoiser\.images.*greater than or equal to 1.*-3"),
        ("train.denoiser.images", r"section\.key=value"),
        ("=3", r"section\.key=value"),
        ("name.x=1", "'name' is a value"),
        ("prepare.image_size=30", "multiple of"),
        ("collect.urls=x.csv", "more than one source"),
        ("run.root=[", "not valid YAML"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", [override])


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read.*demo"):
        load_recipe("nowhere")
    path = tmp_path / "x.yaml"
    for text, message in (
        ("a: [", "not valid YAML"),
        ("- 1", "holds list"),
        ("", "holds NoneType"),
        ("a: 1", "name"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            load_recipe(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(str(path))


@given(st.text(max_size=30))
def test_any_override_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(RecipeError):
        load_recipe("demo", [text])


def test_circumstance_is_no_identity() -> None:
    one, two = load_recipe("demo"), load_recipe("demo", ["run.workers=4", "run.root=/elsewhere"])
    for section in ("collect", "prepare", "train", "assess", "release"):
        assert getattr(one, section).identity() == getattr(two, section).identity()
