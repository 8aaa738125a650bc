"""The page about clusters of duplicates: what it shows first, what it says of each copy, and that it stays bounded."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.records import DROPPED_SCHEMA, DUPLICATES_SCHEMA
from components.data.inspecting_duplicates import choose, inspect_duplicates
from components.runtime.storage import Artifact, Outcome, Store
from tests.components.data.collections import Shown, drawn, make_collection

CLUSTERS = (  # name, tiers of the copies, captions that conflict
    ("aa", ["exact", "exact", "exact"], 0),
    ("bb", ["near", "semantic"], 0),
    ("cc", ["near"], 1),
    ("dd", ["near"] * 20, 0),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


def made(store: Store, clusters: tuple[tuple[str, list[str], int], ...] = CLUSTERS) -> tuple[Artifact, Artifact]:
    """A dataset and its collection, with these clusters: the first member of each stays."""
    pictures = [
        Shown(drawn(c), f"caption {c} <b>") for c, (_, tiers, _) in enumerate(clusters) for _ in range(len(tiers) + 1)
    ]
    collection = make_collection(store, pictures)
    ledger = pq.read_table(collection.path("ledger.parquet")).to_pylist()
    duplicates, dropped, at = [], [], 0
    for name, tiers, conflicts in clusters:
        for number, tier in enumerate([None, *tiers]):
            row = ledger[at]
            duplicates.append(
                {
                    "cluster": name, "id": f"{at:016x}", "url": row["url"], "caption": row["caption"],
                    "sha256": row["sha256"], "tier": tier, "survives": tier is None,
                    "conflict": 0 < number <= conflicts,
                }
            )  # fmt: skip
            if tier:
                dropped.append(
                    {
                        "url": row["url"],
                        "caption": "",
                        "sha256": row["sha256"],
                        "reason": f"duplicate_{tier}",
                        "detail": f"why {at}",
                    }
                )
            at += 1
    draft = store.draft("dataset", {"collection_000": collection}, {})
    pq.write_table(pa.Table.from_pylist(duplicates, schema=DUPLICATES_SCHEMA), draft.dir / "duplicates.parquet")
    pq.write_table(pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA), draft.dir / "dropped.parquet")
    return draft.commit(Outcome(counts={"rows": len(clusters)})), collection


def shown_clusters(page: str) -> list[str]:
    return re.findall(r"cluster <code>(\w+)</code>", page)


def test_doubtful_clusters_come_first_then_the_largest(store: Store, tmp_path: Path) -> None:
    dataset, collection = made(store)
    page = inspect_duplicates(dataset, [collection], tmp_path / "page.html").read_text()
    assert shown_clusters(page) == ["bb", "cc", "dd", "aa"]
    assert page.count("caption differs") == 1
    assert page.count(">stays<") == len(CLUSTERS)


def test_the_survivor_leads_and_every_copy_says_why_it_goes(store: Store, tmp_path: Path) -> None:
    dataset, collection = made(store)
    page = inspect_duplicates(dataset, [collection], tmp_path / "page.html").read_text()
    section = page[page.index("<code>aa</code>") :].split("</section>")[0]
    badges = re.findall(r'class="badge[^"]*">([^<]+)<', section)
    assert badges == ["stays", "exact", "exact", "exact"]
    assert re.findall(r"why \d+</span>", section) == ["why 1</span>", "why 2</span>", "why 3</span>"]
    assert section.count("data:image/") == 4
    assert section.count("0.0 apart") == 3


def test_the_page_is_bounded_needs_no_other_file_and_is_the_same_again(store: Store, tmp_path: Path) -> None:
    dataset, collection = made(store)
    one = inspect_duplicates(dataset, [collection], tmp_path / "1.html").read_bytes()
    two = inspect_duplicates(dataset, [collection], tmp_path / "2.html").read_bytes()
    assert one == two
    page = one.decode()
    assert "and 9 more" in page  # of 21
    assert page.count("<img") == 3 + 2 + 12 + 4
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "&lt;b&gt;" in page and '<b>"' not in page
    few = inspect_duplicates(dataset, [collection], tmp_path / "3.html", most=2).read_text()
    assert shown_clusters(few) == ["bb", "dd"]
    assert "2 further clusters are not shown" in few


def test_a_picture_that_is_gone_is_said_to_be(store: Store, tmp_path: Path) -> None:
    dataset, _ = made(store)
    page = inspect_duplicates(dataset, [], tmp_path / "page.html").read_text()
    assert "<img" not in page and "no picture" in page


def test_no_duplicates(store: Store, tmp_path: Path) -> None:
    dataset, collection = made(store, ())
    page = inspect_duplicates(dataset, [collection], tmp_path / "page.html").read_text()
    assert "No picture of this dataset has a duplicate" in page


def test_room_that_one_group_leaves_is_the_others() -> None:
    n = 50
    clusters = {
        "cluster": np.array([f"{i:02d}" for i in range(n)], dtype=object),
        "size": np.arange(n) + 2,
        "semantic": np.array([0] * 40 + [1] * 10),
        "conflict": np.zeros(n, dtype=np.int64),
    }
    doubtful, large = choose(clusters, 30)
    assert [c["cluster"] for c in doubtful] == [f"{i:02d}" for i in range(49, 39, -1)]
    assert [c["cluster"] for c in large] == [f"{i:02d}" for i in range(39, 19, -1)]
    doubtful, large = choose(clusters | {"semantic": np.ones(n, dtype=np.int64)}, 30)
    assert (len(doubtful), len(large)) == (30, 0)
