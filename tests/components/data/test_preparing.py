"""Prepare on small collections of given pictures: what stays, what goes and why, and what is touched for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import ArtifactError, DataError, RecipeError
from components.contracts.recipe import Recipe
from components.contracts.records import DROPPED_SCHEMA, DUPLICATES_SCHEMA, SAMPLE_SCHEMA
from components.data.deciding import conflicting, split_of
from components.data.preparing import prepare
from components.data.takedown import Blocklist, rule
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.components.data.collections import Shown, drawn, make_collection

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]


def context(home: Path, **prepare: Any) -> Context:
    rules = {"min_rows": 5, "max_caption_chars": 60, **prepare}
    collect = rules.pop("collect", {})
    return Context.of(Recipe.model_validate({
        "name": "data", "collect": collect, "prepare": rules, "run": {"root": str(home), "object_store_mb": 200},
    }))  # fmt: skip


def rows_of(dataset: Artifact) -> list[dict[str, Any]]:
    return [row for path in dataset.paths("data/") for row in pq.read_table(path).to_pylist()]


def table(dataset: Artifact, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(dataset.path(f"{name}.parquet")).to_pylist()
    return rows


def urls(rows: Sequence[dict[str, Any]]) -> list[int]:
    return [int(row["url"].rpartition("/")[2]) for row in rows]


PLAIN = [Shown(drawn(i), f"picture number {i}") for i in range(40)]
COPIES = [  # rows 40 ..
    Shown(drawn(0), "Picture, number 0!", source=(640, 640)),  # 40: the same pixels, better resolution at the source
    Shown(drawn(1), "something else", quality=95),  # 41: nearly the same pixels, worse quality
    Shown(drawn(1), "picture number 1", quality=60),  # 42
    Shown(drawn(2), "picture number 2"),  # 43: the same bytes and the same caption: nothing is between them
    Shown(drawn(3), "it is joe@example.com"),  # 44: the same bytes, another caption
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def collection(home: Path) -> Artifact:
    return make_collection(context(home).store, [*PLAIN, *COPIES])


@pytest.fixture(scope="module")
def dataset(home: Path, collection: Artifact) -> Artifact:
    return prepare(context(home, alternatives=True), [collection])


def test_the_best_copy_survives_and_the_first_names_the_cluster(dataset: Artifact) -> None:
    rows, dropped, duplicates = rows_of(dataset), table(dataset, "dropped"), table(dataset, "duplicates")
    for name, schema in (("dropped", DROPPED_SCHEMA), ("duplicates", DUPLICATES_SCHEMA)):
        assert pq.read_schema(dataset.path(f"{name}.parquet")).equals(schema)
    kept = set(urls(rows))
    assert 40 in kept and 0 not in kept  # resolution at the source
    assert 1 in kept and not {41, 42} & kept  # quality: PNG before JPEG
    assert len({2, 43} & kept) == len({3, 44} & kept) == 1 and len(kept) == 40  # smallest id
    assert dataset.manifest.dropped == Counter(row["reason"] for row in dropped)
    assert dataset.manifest.dropped == {"duplicate_exact": 3, "duplicate_near": 2}
    assert len(rows) + len(dropped) == 45 and not set(urls(dropped)) & kept

    by_cluster: dict[str, list[dict[str, Any]]] = {}
    for row in duplicates:
        by_cluster.setdefault(row["cluster"], []).append(row)
    assert sorted(sorted(urls(rows)) for rows in by_cluster.values()) == [[0, 40], [1, 41, 42], [2, 43], [3, 44]]
    for cluster, members in by_cluster.items():
        assert cluster == min(row["id"] for row in members)
        (survivor,) = (row for row in members if row["survives"])
        assert survivor["tier"] is None and not survivor["conflict"] and set(urls([survivor])) <= kept
        assert survivor["id"] in {row["id"] for row in rows if row["cluster"] == cluster}
    conflicts = {urls([row])[0] for row in duplicates if row["conflict"]}
    assert 41 in conflicts and not conflicts & {0, 40, 42, 2, 43} and conflicts & {3, 44}
    assert dataset.manifest.evidence["duplicates"] == {
        "clusters": 4, "members": 9, "conflicts": len(conflicts), "alternatives": 3
    }  # fmt: skip


def test_captions_of_dropped_copies_are_kept_and_personal_data_is_not(dataset: Artifact, home: Path) -> None:
    rows = {urls([row])[0]: row for row in rows_of(dataset)}
    assert rows[40]["alternatives"] == ["picture number 0"] and rows[1]["alternatives"] == ["something else"]
    assert rows[5]["alternatives"] == []
    last = rows[44] if 44 in rows else rows[3]
    assert {last["caption"], *last["alternatives"]} == {"picture number 3", "it is [email]"}
    for path in dataset.paths(""):
        assert b"joe@example" not in path.read_bytes(), path
    plain = prepare(context(home), [make_collection(context(home).store, [*PLAIN, *COPIES])])
    assert all(row["alternatives"] is None for row in rows_of(plain))


def test_rows_are_whole(dataset: Artifact) -> None:
    rows = rows_of(dataset)
    assert pq.read_schema(dataset.paths("data/")[0]).equals(SAMPLE_SCHEMA)
    assert urls(rows) == sorted(urls(rows)) and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        number = {40: 0, 41: 1, 42: 1, 43: 2, 44: 3}.get(urls([row])[0], urls([row])[0])
        expected = np.asarray(drawn(number).resize((32, 32), 3), dtype=int)
        found = np.frombuffer(row["pixels"], np.uint8).reshape(32, 32, 3)
        assert np.abs(found - expected).mean() < 8
        assert row["split"] == split_of(row["cluster"], 0.05)
        assert row["tokens"][0] == 0 and row["tokens"][-1] == 1 and len(row["sha256"]) == 64
    assert set(json.loads(dataset.path("profile.json").read_text())) >= {"sharpness", "entropy", "characters"}
    assert Path(dataset.manifest.circumstance["data_docs"]).exists()
    assert any(n.startswith("circumstance/data_docs/validations/rows") for n in dataset.manifest.files)


def test_another_threshold_opens_no_shard_and_measures_nothing(
    dataset: Artifact, collection: Artifact, home: Path
) -> None:
    store = context(home).store
    scores = store.list("scores")
    shards, away = collection.local() / "shards", home / "away"
    shards.rename(away)
    try:
        again = prepare(context(home, max_caption_chars=18), [collection])
    finally:
        away.rename(shards)
    assert store.list("scores") == scores and len(scores) == 1
    assert again.manifest.dropped["caption_too_long"] == 1 and again.digest != dataset.digest


def test_clusters_and_splits_stay_when_a_collection_is_added(
    dataset: Artifact, collection: Artifact, home: Path
) -> None:
    ctx = context(home, alternatives=True)
    newer = [Shown(drawn(7), "seven again", source=(900, 900)), *(Shown(drawn(i), f"new {i}") for i in range(90, 100))]
    both = prepare(ctx, [collection, make_collection(ctx.store, newer, "b")], tokenizer_from=dataset)
    before = {row["cluster"]: row["split"] for row in rows_of(dataset)}
    after = {row["cluster"]: row["split"] for row in rows_of(both)}
    assert before.items() <= after.items() and len(after) == len(before) + 10
    seven = [row for row in rows_of(both) if row["cluster"] in before and row["source"] == 1]
    assert [row["caption"] for row in seven] == ["seven again"]  # a better copy came, in the old one's place
    assert seven[0]["alternatives"] == ["picture number 7"]
    assert both.path("tokenizer/tokenizer.json").read_bytes() == dataset.path("tokenizer/tokenizer.json").read_bytes()


def test_near_duplicates_that_stay_share_a_split(collection: Artifact, home: Path) -> None:
    kept = prepare(context(home, near_duplicates=False), [collection])
    assert kept.manifest.dropped == {"duplicate_exact": 3}
    rows = {urls([row])[0]: row for row in rows_of(kept)}
    assert {1, 41, 42} <= set(rows) and len({rows[i]["cluster"] for i in (1, 41, 42)}) == 1
    assert {row["survives"] for row in table(kept, "duplicates") if row["url"].endswith("/41")} == {True}


def test_rows_that_break_the_ledgers_promises_are_quarantined_or_stop(home: Path) -> None:
    bad = [*PLAIN, Shown(drawn(50), "too many bytes", ledger={"bytes": 9_000_000})]
    ctx = context(home)
    made = prepare(ctx, [make_collection(ctx.store, bad, "bad")])
    (row,) = table(made, "dropped")
    assert row["reason"] == "quarantined" and row["detail"].startswith("does not meet: bytes values to be between")
    strict = context(home, quarantine=False)
    with pytest.raises(DataError, match=r"collected: bytes values to be between.*1 of 41 rows"):
        prepare(strict, [make_collection(strict.store, bad, "bad")])


def test_rows_that_fail_after_redaction_are_quarantined(home: Path) -> None:
    # the caption is short enough to pass the filter, and too long once the address is redacted
    rows = [*PLAIN, Shown(drawn(51), f"{'x' * 51} a@b.de")]
    for strict in (False, True):
        ctx = context(home, max_caption_chars=58, quarantine=not strict)
        collection = make_collection(ctx.store, rows, "long")
        if strict:
            with pytest.raises(DataError, match=r"caption_characters values to be between \(max_value 58"):
                prepare(ctx, [collection])
        else:
            made = prepare(ctx, [collection])
            assert made.manifest.dropped == {"quarantined": 1} and len(rows_of(made)) == 40


def test_a_gate_that_fails_leaves_its_pages_and_no_artifact(tmp_path: Path) -> None:
    for rules, said in (
        ({"min_rows": 1000}, "train values to be between"),
        ({"collect": {"min_collected": 0.99}}, "collected_share values to be between"),
    ):
        ctx = context(tmp_path, **rules)
        collection = make_collection(ctx.store, [*PLAIN, Shown(None, "gone")], "few")
        with pytest.raises(DataError) as error:
            prepare(ctx, [collection])
        page = next(word for word in str(error.value).split() if word.endswith("index.html,")).rstrip(",")
        assert said in str(error.value) and Path(page).exists() and "\n" not in str(error.value)
        assert not ctx.store.list("dataset")


def test_drift_against_the_dataset_before(tmp_path: Path) -> None:
    ctx = context(tmp_path, max_score_drift=0.2)
    first = prepare(ctx, [make_collection(ctx.store, PLAIN, "one")])
    assert "circumstance/drift.json" not in first.manifest.files  # nothing came before
    flat = [Shown(drawn(100 + i, (300, 64)), f"{'long ' * 9}{i}") for i in range(40)]
    with pytest.raises(DataError, match=r"drift: characters values to be between \(max_value 0.2\)"):
        prepare(context(tmp_path, max_score_drift=0.2, max_aspect=9), [make_collection(ctx.store, flat, "two")])
    loose = prepare(context(tmp_path, max_score_drift=99, max_aspect=9), [make_collection(ctx.store, flat, "two")])
    found = json.loads(loose.path("circumstance/drift.json").read_text())
    assert found["before"] == first.digest and found["index"]["characters"] > 1
    alone = context(tmp_path / "alone", max_score_drift=99, max_aspect=9)
    assert prepare(alone, [make_collection(alone.store, flat, "two")]).digest == loose.digest


def test_pictures_of_several_shapes_go_to_their_buckets(tmp_path: Path) -> None:
    ctx = context(tmp_path, buckets=(1.0, 2.0, 0.5))
    shapes = ((64, 64), (100, 50), (40, 90))
    made = prepare(ctx, [make_collection(ctx.store, [Shown(drawn(i, shapes[i % 3]), f"p {i}") for i in range(30)])])
    rows = rows_of(made)
    assert [row["bucket"] for row in rows[:3]] == ["32x32", "48x24", "24x48"]
    assert all(
        len(r["pixels"]) == r["width"] * r["height"] * 3 and r["bucket"] == f"{r['width']}x{r['height']}" for r in rows
    )


def test_what_was_taken_down_stays_away(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    collection = make_collection(ctx.store, PLAIN)
    Blocklist.add(ctx.store.url, {rule("url", "http://a.example/3"): ()})
    made = prepare(ctx, [collection])
    assert made.manifest.dropped == {"taken_down": 1} and 3 not in urls(rows_of(made))
    assert made.manifest.evidence["takedown"]["rules"] == 1


def test_a_threshold_on_what_is_not_measured_is_refused_before_any_work(tmp_path: Path) -> None:
    ctx = context(tmp_path, min_aesthetic=3.0)
    with pytest.raises(RecipeError, match=r"prepare\.aesthetic is null"):
        prepare(ctx, [make_collection(ctx.store, PLAIN)])
    assert not ctx.store.list("scores")


def test_scores_that_were_damaged_are_not_used(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    collection = make_collection(ctx.store, PLAIN)
    prepare(ctx, [collection])
    (scores,) = ctx.store.list("scores")
    path = scores.path("pixels/00000.parquet")
    data = path.read_bytes()
    path.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with pytest.raises(ArtifactError, match=r"pixels/00000.parquet.*is damaged"):
        prepare(context(tmp_path, max_caption_chars=50), [collection])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_conflicts_are_of_words_alone(some: str, other: str) -> None:
    assert not conflicting([some], [some])[0] and not conflicting([some], [f"  {some}! "])[0]
    assert conflicting([some], [other])[0] == conflicting([other], [some])[0]
    assert conflicting([some], [some + " x"])[0]
