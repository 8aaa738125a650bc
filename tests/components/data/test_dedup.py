"""Tiers joined: clusters, first members, survivors and what ties a copy to its survivor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Prepare, Run
from components.data import dedup, exact, near
from components.data.dedup import EXACT, NEAR, SEMANTIC, Duplicates, best_of, find_duplicates
from components.data.scores import SCORE_SCHEMA, Part, Scores

RULES = Prepare()
RUN = Run(object_store_mb=200)


@dataclass
class Picture:
    """A row of scores. Pictures of one ``look`` are near each other, those of one ``pixels`` are equal."""

    look: int
    pixels: str
    sha256: str
    id: int
    side: int = 100
    quality: int | None = 90
    source: int = 0
    kept: int = 64
    thumb: bytes = field(default=b"", repr=False)


def made(look: int, pixels: str, sha256: str, id_: int, **more: Any) -> Picture:
    rng = np.random.default_rng([look, 1])
    thumb = rng.integers(3, 253, 768)
    return Picture(look, pixels, sha256, id_, **more, thumb=thumb.astype(np.uint8).tobytes())


def hashes_of(look: int) -> tuple[int, int]:
    plain, mirrored = np.random.default_rng([look, 0]).integers(0, 2**64, 2, dtype=np.uint64).tolist()
    return plain, mirrored


Reader = Callable[[list[Picture]], Scores]


@pytest.fixture
def scores_of(tmp_path: Path) -> Reader:
    def read(pictures: list[Picture]) -> Scores:
        return scores_in(tmp_path, pictures)

    return read


def scores_in(folder: Path, pictures: list[Picture]) -> Scores:
    """Scores as they are read from files, one for every source."""
    parts = []
    for source in sorted({p.source for p in pictures}):
        rows = []
        for number, p in enumerate(pictures):
            if p.source == source:
                plain, mirrored = hashes_of(p.look)
                rows.append(
                    {
                        "row": number, "url": f"http://x/{number}", "clean": "", "sha256": p.sha256, "id": p.id,
                        "width": p.side, "height": p.side, "kept_width": p.kept, "kept_height": 64 * 64 // p.kept,
                        "quality": p.quality, "pixel_sha256": p.pixels, "phash": plain, "phash_mirror": mirrored,
                        "thumb": p.thumb,
                    }
                )  # fmt: skip
        path = folder / f"{source}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), path)
        parts.append(Part(source, str(path), ""))
    return Scores(parts)


def found(scores: Scores, rules: Prepare = RULES, at: list[int] | None = None) -> Duplicates:
    return find_duplicates(scores, np.arange(len(scores)) if at is None else np.array(at, dtype=np.int64), rules, RUN)


def lists(duplicates: Duplicates) -> tuple[list[int], list[int], list[int]]:
    return duplicates.first.tolist(), duplicates.survivor.tolist(), duplicates.tier.tolist()


def test_tiers_clusters_and_survivors(scores_of: Reader) -> None:
    scores = scores_of(
        [
            made(1, "p1", "s1", 50),
            made(1, "p1", "s1", 40),  # the same bytes with another caption
            made(1, "p1", "s2", 30),  # the same pixels in another file
            made(1, "p3", "s3", 60, side=200),  # larger: survives
            made(2, "p4", "s4", 10),  # alone
        ]
    )
    assert lists(found(scores)) == ([2, 2, 2, 2, 4], [3, 3, 3, 3, 4], [NEAR, NEAR, NEAR, 0, 0])


def test_the_survivor_has_the_best_resolution_then_quality_then_the_smallest_id(scores_of: Reader) -> None:
    best = made(1, "a", "a", 9, side=300, quality=50)
    others = [
        made(1, "b", "b", 1, side=299, quality=100), made(1, "c", "c", 2, side=300, quality=49),
        made(1, "d", "d", 3, side=300, quality=None), made(1, "e", "e", 10, side=300, quality=50),
    ]  # fmt: skip
    for place in range(5):
        pictures = [*others[:place], best, *others[place:]]
        assert found(scores_of(pictures)).survivor.tolist() == [place] * 5


def test_the_first_member_is_of_the_earliest_collection(scores_of: Reader) -> None:
    old = [made(1, "a", "a", 8, side=10), made(1, "b", "b", 7, side=10)]
    new = [made(1, "c", "c", 1, side=500, source=1)]
    assert lists(found(scores_of(old))) == ([1, 1], [1, 1], [NEAR, 0])
    assert lists(found(scores_of(old + new))) == ([1, 1, 1], [2, 2, 2], [NEAR, NEAR, 0])


def test_only_the_positions_asked_for_count(scores_of: Reader) -> None:
    scores = scores_of([made(1, "a", "a", 1), made(2, "b", "b", 2), made(1, "a", "a", 3), made(1, "a", "a", 4)])
    assert lists(found(scores, at=[1, 2, 3])) == ([1, 2, 2], [1, 2, 2], [0, 0, EXACT])
    assert lists(found(scores, at=[])) == ([], [], [])
    assert lists(found(scores, at=[1])) == ([1], [1], [0])


def test_pictures_without_detail_are_equal_only_in_one_shape(scores_of: Reader) -> None:
    """All pixels of one colour: 64 x 64 and 32 x 128 of them are the same bytes."""
    pictures = [made(1, "black", "a", 1), made(2, "black", "b", 2, kept=128), made(3, "black", "c", 3)]
    assert found(scores_of(pictures)).tier.tolist() == [0, 0, EXACT]


def test_near_duplicates_may_stay_but_their_cluster_is_told(scores_of: Reader) -> None:
    scores = scores_of([made(1, "a", "a", 3), made(1, "b", "b", 2), made(1, "b", "c", 1, side=10)])
    rules = Prepare(near_duplicates=False)
    assert lists(found(scores, rules)) == ([2, 2, 2], [0, 1, 1], [0, 0, EXACT])


def test_semantic_pairs_join_clusters(scores_of: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the semantic tier finds is tested with it; here, what becomes of its pairs."""
    pictures = [made(look, f"p{k}", f"s{k}", 9 - k) for k, look in enumerate([1, 1, 2, 3])]
    asked: list[list[int]] = []

    def pairs(scores: Scores, at: np.ndarray, rules: Prepare, run: Run, known: np.ndarray) -> np.ndarray:
        asked.extend([at.tolist(), known.tolist()])
        return np.array([[1, 2]])

    monkeypatch.setattr(dedup.semantic, "semantic_pairs", pairs)
    scores = scores_of(pictures)
    assert lists(found(scores, Prepare(embedding="atelier"))) == (
        [2, 2, 2, 3],
        [2, 2, 2, 3],
        [SEMANTIC, SEMANTIC, 0, 0],
    )
    assert asked == [[0, 1, 2, 3], [0, 0, 2, 3]]
    assert lists(found(scores)) == ([1, 1, 2, 3], [1, 1, 2, 3], [NEAR, 0, 0, 0])


def random_pictures(seed: int, n: int) -> list[Picture]:
    """Pictures with all kinds of ties between them; equal bytes have equal pixels, equal pixels one look."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(n)
    pictures = []
    for k in range(n):
        look = int(rng.integers(0, max(1, n // 3)))
        pixels = f"{look}-{rng.integers(0, 3)}"
        sha256 = f"{pixels}-{rng.integers(0, 2)}"
        pictures.append(made(look, pixels, sha256, int(ids[k]), side=int(rng.integers(1, 4)), quality=None))
    return pictures


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, random: Any
) -> None:
    folder = tmp_path_factory.mktemp("order")
    pictures = random_pictures(seed, n)
    shuffled = list(pictures)
    random.shuffle(shuffled)
    outcomes = []
    for some in (pictures, shuffled):
        duplicates = found(scores_in(folder, some))
        outcomes.append(
            {
                p.id: (some[first].id, some[survivor].id, tier)
                for p, first, survivor, tier in zip(some, *lists(duplicates), strict=True)
            }
        )
    assert outcomes[0] == outcomes[1]
    for p in pictures:  # and it is what the words say: pictures of one look are one cluster
        same = [q for q in pictures if q.look == p.look]
        survivor = min(same, key=lambda q: (-q.side, q.id))
        tier = 0 if p is survivor else EXACT if p.pixels == survivor.pixels else NEAR
        assert outcomes[0][p.id] == (min(q.id for q in same), survivor.id, tier)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3)), min_size=10, max_size=40))
def test_best_of_each_label(rows: list[tuple[int, int, int]]) -> None:
    labels, one, other = np.array(rows).T
    expected = [
        min((k for k, r in enumerate(rows) if r[0] == row[0]), key=lambda k: (rows[k][1], rows[k][2], k))
        for row in rows
    ]
    assert best_of(labels, [one, other]).tolist() == expected


@pytest.mark.integration
def test_on_ray_the_same(local_ray: None, scores_of: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((near, "_BATCH"), (near, "_BUCKET"), (exact, "_BUCKET")):
        monkeypatch.setattr(module, name, 50)
    scores = scores_of(random_pictures(5, 300))
    here = found(scores)
    there = find_duplicates(scores, np.arange(300), RULES, RUN, ray_rows=100)
    assert lists(here) == lists(there)
    assert set(here.tier.tolist()) == {0, EXACT, NEAR}
