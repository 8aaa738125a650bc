"""A grader of your own: any callable that says of a picture whether it shows what was asked for.

``assess.atoms: "package.module:function"`` names it. It is called with the picture (``PIL.Image``, RGB) and the
prompt, and returns ``(right, reason)``, or ``None`` for a prompt that it cannot judge; the embedded world's own grader
comes first where it can judge. It is code that runs with all rights of who runs the assessment: name only what you
trust. It is imported in the workers, so it must lie on their path. Its source file is part of the judge's identity.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.contracts.errors import InputError, RecipeError
from components.evaluation.extractor import Pictures

Atom = Callable[[Any, str], "tuple[bool, str] | None"]


def load_atom(path: str) -> Atom:
    """The callable at ``package.module:function``.

    Raises:
        RecipeError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise _refused(path, str(error)) from error
    if not callable(found):
        raise _refused(path, f"{name} is no function")
    return found  # type: ignore[no-any-return]


def code_digest(path: str) -> str:
    """SHA-256 (hex) of the source file that ``path`` names; nothing of it is run.

    Raises:
        RecipeError: there is none.
    """
    module = path.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise _refused(path, str(error)) from error
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise _refused(path, f"there is no module {module}")
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()


def ask(atom: Atom, picture: Pictures, prompt: str) -> dict[str, Any] | None:
    """The verdict on one picture uint8 [H, W, 3], as the exact grader's: ``correct``, ``attributes``, ``reason``.

    Raises:
        InputError: the callable raised, or answered with something else.
    """
    from PIL import Image

    try:
        answer = atom(Image.fromarray(picture), prompt)
    except Exception as error:  # whatever the code of somebody else raises
        raise InputError(
            f"assess.atoms raised {type(error).__name__} on the prompt {prompt[:60]!r}: {error}",
            remedy="correct the function, or let it return None for what it cannot judge",
        ) from error
    if answer is None:
        return None
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], str)):
        raise InputError(
            f"assess.atoms answered {answer!r} on the prompt {prompt[:60]!r}",
            expected="(True or False, reason), or None",
            remedy="correct the function",
        )
    right, reason = bool(answer[0]), answer[1]
    return {"correct": right, "attributes": {}, "reason": "" if right else reason or "no reason given"}


def _refused(path: str, problem: str) -> RecipeError:
    return RecipeError(
        f"assess.atoms names {path}, which cannot be imported: {problem}",
        expected="package.module:function of a module on the path of this command and of Ray's workers",
        remedy="correct the name, or start the command in the folder that holds the module",
    )
