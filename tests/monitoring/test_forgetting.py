"""Prompts leave drift artifacts when their requests are erased."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.runtime.storage import Outcome, Store, write_bytes
from monitoring.forgetting import forget_prompts


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two drift artifacts: one of four requests, one of too few to be compared."""
    store = Store(str(tmp_path / "store"))
    asked = pa.table({
        "request_id": ["a", "b", "c", "d"],
        "prompt": ["a red star", "ada's cat", None, "a moon"],
        "status": [200, 200, 500, 200],
        "unknown_words": [[], ["ada's"], [], ["moon"]],
        "words": [3, 2, 0, 2],
    })  # fmt: skip
    for number, table in enumerate((asked, asked.slice(0, 1).drop_columns("unknown_words"))):
        draft = store.draft("drift", {}, {"n": number})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_bytes(f"{draft.url}/prompts.parquet", buffer.getvalue())
        draft.commit(Outcome())
    return store


def rows(store: Store, identity: str) -> list[dict[str, object]]:
    artifact = store.find("drift", identity)
    assert artifact is not None
    artifact.verify()
    found: list[dict[str, object]] = pq.read_table(artifact.path("prompts.parquet")).to_pylist()
    return found


def test_only_prompts_of_erased_requests(store: Store) -> None:
    first, second = (artifact.manifest.identity for artifact in store.list("drift"))
    if len(rows(store, first)) == 1:
        first, second = second, first
    assert forget_prompts(store, set()) == 0
    assert forget_prompts(store, {"b", "c", "x"}) == 1
    found = rows(store, first)
    assert [row["prompt"] for row in found] == ["a red star", None, None, "a moon"]
    assert found[1]["unknown_words"] is None and found[3]["unknown_words"] == ["moon"]
    assert [row["words"] for row in found] == [3, 2, 0, 2]
    assert forget_prompts(store, {"b", "c", "x"}) == 0  # done is done
    assert forget_prompts(store, {"a"}) == 2 and rows(store, second)[0]["prompt"] is None
