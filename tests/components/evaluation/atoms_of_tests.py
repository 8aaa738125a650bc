"""Graders that tests name in ``assess.atoms``."""

from __future__ import annotations

from typing import Any


def mentions_a_dog(image: Any, prompt: str) -> tuple[bool, str] | None:
    """Judges prompts about dogs, and finds none."""
    return (False, "no dog was looked for") if "dog" in prompt and image.mode == "RGB" else None
