"""A grader of one's own: found by its path, asked, and named when it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from components.contracts.errors import InputError, RecipeError
from components.evaluation.atoms import ask, code_digest, load_atom

CODE = """
def bright(image, prompt):
    if prompt == "none of mine":
        return None
    assert image.mode == "RGB"
    light = sum(image.resize((1, 1)).getpixel((0, 0))) / 3
    return light > 127, f"its mean is {light:.0f}"


def broken(image, prompt):
    raise KeyError("no such thing")


def odd(image, prompt):
    return "yes"


number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with graders."""
    (tmp_path / "my_atoms.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_atoms", raising=False)
    return "my_atoms"


def test_verdicts(module: str) -> None:
    atom = load_atom(f"{module}:bright")
    dark, light = (np.full((8, 6, 3), value, np.uint8) for value in (10, 240))
    assert ask(atom, light, "a") == {"correct": True, "attributes": {}, "reason": ""}
    assert ask(atom, dark, "a") == {"correct": False, "attributes": {}, "reason": "its mean is 10"}
    assert ask(atom, dark, "none of mine") is None


def test_what_fails_is_named(module: str) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match=r"raised KeyError on the prompt 'a'.*no such thing"):
        ask(load_atom(f"{module}:broken"), picture, "a")
    with pytest.raises(InputError, match="answered 'yes'"):
        ask(load_atom(f"{module}:odd"), picture, "a")
    for path in (f"{module}:nothing", f"{module}:number", "no_such_module_here:f"):
        with pytest.raises(RecipeError, match=r"assess\.atoms names .* which cannot be imported"):
            load_atom(path)


def test_the_code_is_part_of_the_identity_and_not_run_for_it(module: str, tmp_path: Path) -> None:
    first = code_digest(f"{module}:bright")
    assert module not in sys.modules
    with (tmp_path / "my_atoms.py").open("a") as file:
        file.write("# changed\n")
    assert code_digest(f"{module}:bright") != first
    with pytest.raises(RecipeError, match="there is no module"):
        code_digest("no_such_module_here:f")
