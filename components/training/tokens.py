"""Token ids of a dataset's captions as a text encoder's own tokenizer gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("tokens", "caption")  # what is read of the dataset's rows


def token_rows(rows: Any, tokenizer: Any, dataset: Path) -> list[list[int]]:
    """Ids, begin to end, of every row of a table with ``COLUMNS``, in its order; longer than the tokenizer's
    ``model_max_length`` only where the dataset's own are.

    The dataset holds ids of its own tokenizer. A text encoder that others trained has another one: captions are
    then read anew.

    Args:
        tokenizer: as :func:`components.models.text_encoder.load_tokenizer` gives it.
    """
    if _same(dataset / "tokenizer", Path(tokenizer.name_or_path)) or not rows.num_rows:
        found: list[list[int]] = rows["tokens"].to_pylist()
        return found
    return tokens_of([caption or "" for caption in rows["caption"].to_pylist()], tokenizer)


def all_tokens(
    own: Sequence[list[int]], alternatives: Sequence[list[str] | None], tokenizer: Any
) -> tuple[list[list[int]], list[int]]:
    """Ids of every row's own caption and, after it, of its alternatives; and how many captions each row has."""
    others = tokens_of([text for some in alternatives for text in some or ()], tokenizer)
    found, at = list[list[int]](), 0
    for ids, some in zip(own, alternatives, strict=True):
        found += [ids, *others[at : at + len(some or ())]]
        at += len(some or ())
    return found, [1 + len(some or ()) for some in alternatives]


def tokens_of(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Ids, begin to end, of captions, cut to the tokenizer's ``model_max_length``."""
    if not texts:
        return []
    read = tokenizer(texts, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
    return [list(ids) for ids in read]


def _same(one: Path, other: Path) -> bool:
    return (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
