"""A share of requests or keys, by their names: the same name is always in or out."""

from __future__ import annotations

import hashlib


def chance(purpose: str, name: str) -> float:
    """A number in 0..1 that is always the same for ``name``, evenly spread, and independent for another purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{name}".encode()).digest()[:6], "big") / 2**48
