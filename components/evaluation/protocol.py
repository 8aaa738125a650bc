"""The protocol of a judgement, and the stamp that every number carries.

Two numbers may be compared only when their stamps are equal: the same weights get a Fréchet distance of
15.3 or 11.9 under two protocols that are both in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from components.contracts.manifest import canonical_json, sha256_text

#: Raised by whoever changes code of this package or of the grader so that a number changes.
CODE_VERSION = 2
RESIZE = (
    "uint8 RGB / 255 as drawn, before any encoding, to the extractor's input side by antialiased bicubic where it "
    "differs; Inception: uint8 RGB to 299 by TensorFlow 1's bilinear rule"
)
ONE_PASS = "none (one pass)"  # the sampler of a model that has none: a cnn, vae or gan
DTYPE = "pictures uint8, features float32, moments float64"

#: Index of the first further picture of a prompt, for diversity: beyond those of all prompts and turns.
FURTHER = 2**30

Stamp = dict[str, Any]


def seed_of(base: int, index: int) -> int:
    """Seed of the prompt at ``index``, counted over all sets in order: no worker can change it."""
    return (base + index) % 2**31


def seeds_rule(base: int) -> str:
    """The seed rule in words, for the stamp."""
    return f"{base} + index of the prompt, counted over the sets in order; further pictures of a prompt from {FURTHER}"


def seed_base(recipe_seed: int) -> int:
    """First seed of a judge: far from the small seeds that people try by hand."""
    return (recipe_seed * 1_000_003 + 70_000) % 2**31


def sampler_of(scheduler_config: str | None) -> str:
    """Name and settings digest of the scheduler that a model brings, from its ``scheduler_config.json``."""
    if scheduler_config is None:
        return ONE_PASS
    settings = {k: v for k, v in json.loads(scheduler_config).items() if k != "_diffusers_version"}
    text = json.dumps(settings, sort_keys=True)  # canonical JSON would refuse the infinities that are in there
    return f"{settings.get('_class_name', 'unknown')}:{sha256_text(text)[:12]}"


def stamp_digest(stamp: Mapping[str, Any]) -> str:
    """Short digest of a stamp, written beside each number."""
    return sha256_text(canonical_json(dict(stamp)))[:16]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What differs between two stamps, one line each; empty when numbers under them may be compared.

    A model of one pass has no sampler: held against one that has, that is a difference of the models, not of how
    they were measured.
    """
    families_differ = (one.get("sampler") == ONE_PASS) != (other.get("sampler") == ONE_PASS)
    return [
        f"{key}: {_short(one.get(key))} against {_short(other.get(key))}"
        for key in sorted(set(one) | set(other))
        if one.get(key) != other.get(key) and not (key == "sampler" and families_differ)
    ]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."
