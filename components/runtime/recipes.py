"""Reading a recipe: a built-in name or a YAML path, with dotted overrides."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from components.contracts.errors import RecipeError
from components.contracts.recipe import Recipe

RECIPES_DIR = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"


def recipe_names() -> list[str]:
    """Names of the built-in recipes, sorted."""
    return sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe called ``name_or_path`` with ``overrides`` such as ``train.denoiser.images=200000``.

    Values are read as YAML, so ``null``, ``true``, numbers and ``[a, b]`` mean what they do in the file.

    Raises:
        RecipeError: no such recipe, not YAML, an unknown key, or a value out of range.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPES_DIR / f"{name_or_path}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"Recipe {name_or_path!r} cannot be read: {error}",
            expected=f"one of {', '.join(recipe_names())}, or the path of a YAML file",
            remedy="check the name, or copy pipelines/recipes/demo.yaml and pass its path",
        ) from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}", remedy="mend the line named above"
        ) from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds {type(tree).__name__}", expected="a mapping of sections, as demo.yaml has")
    for override in overrides:
        _apply(tree, override)
    return parse_recipe(tree, str(path))


def parse_recipe(tree: dict[str, Any], where: str) -> Recipe:
    """Validate plain values into a :class:`Recipe`; ``where`` names their origin in messages."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(
            f"{where}: " + "; ".join(_explain(e) for e in error.errors()),
            remedy="correct the keys named above; `atelier recipe --help` shows how to list every key",
        ) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(
            f"Override {override!r} cannot be read",
            expected="section.key=value, such as train.denoiser.images=200000",
            remedy="write it as --set section.key=value",
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"The value of {override!r} is not valid YAML", remedy="quote the value") from error
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise RecipeError(f"Override {override!r}: {section!r} is a value, not a section")
    node[last] = value


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
        return f"unknown key {place!r}{hint}"
    return f"{place}: {error['msg']} (found {error['input']!r})" if error["loc"] else str(error["msg"])


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in location:
        model = model.model_fields[part].annotation
    return sorted(model.model_fields)
