"""Near-duplicates against the definition itself, pair by pair; on Ray against the same in this process."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from components.contracts.recipe import Run
from components.data import near
from components.data.clusters import Forest
from components.data.hashing import measure
from components.data.near import LOCAL, near_labels, near_labels_on_ray, thumbs_near

RUN = Run(object_store_mb=200)


def crowd(rng: np.random.Generator, n: int, centres: int, flips: int, noise: int) -> tuple[np.ndarray, ...]:
    """Hashes and thumbnails around a few centres, as copies and look-alikes of pictures are."""
    centre_hash = rng.integers(0, 2**64, (centres, 2), dtype=np.uint64)
    centre_thumb = rng.integers(0, 256, (centres, 16, 16, 3), dtype=np.int16)
    of = rng.integers(0, centres, n)
    hashes = centre_hash[of]
    for _ in range(flips):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, hashes.shape).astype(np.uint64))
    wander = rng.integers(-noise, noise + 1, (n, 16, 16, 3), dtype=np.int16)
    thumbs = np.clip(centre_thumb[of] + wander, 0, 255).astype(np.uint8)
    turned = rng.random(n) < 0.3  # mirror images
    thumbs[turned] = thumbs[turned, :, ::-1]
    hashes[turned] = hashes[turned, ::-1]
    return hashes[:, 0].copy(), hashes[:, 1].copy(), thumbs


def distances(thumbs: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """The mean difference, or the largest one of 2 x 2 pixels by ``LOCAL`` where that is more."""
    a, b = thumbs[i].astype(int), thumbs[j].astype(int)
    sides = []
    for other in (b, b[:, :, ::-1]):
        places = (a - other).reshape(len(a), 8, 2, 8, 2, 3).mean(axis=(2, 4))
        sides.append(
            np.maximum(np.abs(a - other).mean(axis=(1, 2, 3)), np.abs(places).max(axis=(1, 2, 3), initial=0) / LOCAL)
        )
    return np.minimum(*sides)


def defined(plain: np.ndarray, mirrored: np.ndarray, thumbs: np.ndarray, bits: int, distance: float) -> list[int]:
    """First members by the words of the definition, all pairs compared."""
    i, j = np.triu_indices(len(plain), 1)
    sides = [np.bitwise_count(a[i] ^ b[j]) for a in (plain, mirrored) for b in (plain, mirrored)]
    close = np.minimum.reduce(sides) <= bits
    i, j = i[close], j[close]
    close = distances(thumbs, i, j) <= distance
    labels = np.arange(len(plain))
    for a, b in zip(i[close].tolist(), j[close].tolist(), strict=True):
        low, high = sorted((labels[a], labels[b]))
        labels[labels == high] = low
    return [int(x) for x in labels]


def labels_of(given_: tuple[np.ndarray, ...], bits: int, distance: float) -> list[int]:
    return near_labels(given_[0], given_[1], given_[2].__getitem__, bits, distance).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(0, 140), st.integers(1, 6), st.integers(0, 3), st.integers(0, 16),
    st.integers(0, 16), st.sampled_from([0.0, 3.0, 6.0, 255.0, 1e9]),
)  # fmt: skip
def test_clusters_are_those_of_the_definition(
    seed: int, n: int, centres: int, flips: int, noise: int, bits: int, distance: float
) -> None:
    given_ = crowd(np.random.default_rng(seed), n, centres, flips, noise)
    assert labels_of(given_, bits, distance) == defined(*given_, bits, distance)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(100, 220), st.integers(1, 3), st.integers(0, 2), st.sampled_from([8, 9, 10]))
def test_also_in_crowds_of_pictures_that_are_hardly_near(
    seed: int, n: int, centres: int, flips: int, noise: int
) -> None:
    """At this noise about half of the pairs of a centre are within 6: nothing is connected all with all."""
    given_ = crowd(np.random.default_rng(seed), n, centres, flips, noise)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_CROWD", 16)
        assert labels_of(given_, 3, 6.0) == defined(*given_, 3, 6.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 120))
def test_the_order_of_the_pictures_does_not_matter(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    given_ = crowd(rng, n, 5, 1, 10)
    order = rng.permutation(n)
    first = np.array(labels_of(given_, 3, 6.0))
    again = np.array(labels_of(tuple(a[order] for a in given_), 3, 6.0))
    together = first[:, None] == first
    assert np.array_equal(together[np.ix_(order, order)], again[:, None] == again)


def same_hash(n: int) -> np.ndarray:
    return np.full(n, 0x5A5A5A5A5A5A5A5A, dtype=np.uint64)


def compared(hashes: np.ndarray, thumbs: np.ndarray) -> tuple[int, float]:
    """Number of clusters, and thumbnails asked for a picture."""
    asked = 0

    def get(some: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(some)
        return thumbs[some]

    labels = near_labels(hashes, hashes, get, 3, 6.0)
    return len(np.unique(labels)), asked / len(thumbs)


def test_a_crowd_of_one_hash_costs_no_quadratic_search() -> None:
    n = 20_000
    rng = np.random.default_rng(0)
    base = rng.integers(30, 220, (1, 16, 16, 3), dtype=np.int16)
    noise = rng.integers(-6, 7, (n, 16, 16, 3), dtype=np.int16)
    assert compared(same_hash(n), (base + noise).astype(np.uint8)) == (1, pytest.approx(3, abs=0.1))
    flat = np.broadcast_to(rng.integers(0, 256, (n, 1, 1, 3)), (n, 16, 16, 3)).astype(np.uint8)
    sample = rng.choice(n, 300, replace=False)
    labels = near_labels(same_hash(n), same_hash(n), flat.__getitem__, 3, 6.0)
    for k in sample.tolist():
        colours = flat[:, 0, 0].astype(int)
        reach = np.flatnonzero(np.abs(colours - colours[k]).mean(axis=1) <= 6)
        assert (labels[reach] == labels[k]).all()
    many = same_hash(n) ^ (np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64))
    assert compared(many, (base + noise).astype(np.uint8)) == (1, pytest.approx(5, abs=2))


def test_a_crowd_in_which_nothing_is_near_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_MOST", 32)
    rng = np.random.default_rng(0)
    n = 3000
    thumbs = (128 + rng.integers(-12, 13, (n, 16, 16, 3), dtype=np.int16)).astype(np.uint8)
    clusters, asked = compared(same_hash(n), thumbs)
    assert clusters == n and asked < 2 * 9 * 32 + 40


def test_thumbnails_are_near_as_they_are_or_mirrored() -> None:
    rng = np.random.default_rng(3)
    some = rng.integers(0, 256, (50, 16, 16, 3)).astype(np.uint8)
    others = np.concatenate([some[:20], some[20:40, :, ::-1], some[:10]])
    i = np.arange(50)
    both = np.concatenate([some, others])
    for distance in (0.0, 40.0, 85.0):
        assert thumbs_near(some, others, distance).tolist() == (distances(both, i, i + 50) <= distance).tolist()
    assert thumbs_near(some, others, 0.0).tolist() == [True] * 40 + [False] * 10


def test_one_object_more_is_another_picture() -> None:
    """A bar of 2 x 2 pixels on an even ground: the average hardly differs."""
    one = np.full((1, 16, 16, 3), 100, dtype=np.uint8)
    for change, near_ in ((6 * LOCAL, True), (6 * LOCAL + 1, False)):
        other = one.copy()
        other[0, 4:6, 10:12, 1] += change
        assert np.abs(other.astype(int) - one).mean() < 0.5
        assert thumbs_near(one, other, 6.0).tolist() == [near_]
        assert thumbs_near(other[:, :, ::-1], one, 6.0).tolist() == [near_]


def scene(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small, "RGB").resize((96, 96), Image.Resampling.BICUBIC)


def recoded(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=70)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def test_changed_copies_cluster_with_their_originals_and_nothing_else() -> None:
    originals = [scene(s) for s in range(40)]
    copies = [recoded(ImageOps.mirror(i)) if n % 2 else recoded(i).resize((70, 70)) for n, i in enumerate(originals)]
    scores = [measure(image, (32, 32)) for image in originals + copies]
    plain, mirrored = (np.array([getattr(s, n) for s in scores], dtype=np.uint64) for n in ("phash", "phash_mirror"))
    thumbs = np.frombuffer(b"".join(s.thumb for s in scores), dtype=np.uint8).reshape(-1, 16, 16, 3)
    firsts = labels_of((plain, mirrored, thumbs), 3, 6.0)
    assert firsts[:40] == list(range(40))
    found = [first == n for n, first in enumerate(firsts[40:])]
    assert all(first in (n, n + 40) for n, first in enumerate(firsts[40:]))
    assert sum(found) >= 36  # a coefficient near the median may fall on either side


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_BATCH", 100)
    monkeypatch.setattr(near, "_BUCKET", 300)


def mixed(seed: int) -> tuple[np.ndarray, ...]:
    """Many small clusters, one of a few hundred, mirror images, and pictures alone."""
    rng = np.random.default_rng(seed)
    parts = [crowd(rng, 500, 200, 1, 5), crowd(rng, 250, 1, 1, 9), crowd(rng, 250, 250, 0, 3)]
    order = rng.permutation(1000)
    return tuple(np.concatenate(columns)[order] for columns in zip(*parts, strict=True))


@pytest.mark.integration
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_on_ray_the_same_for_any_number_of_workers(local_ray: None, small_tasks: None, workers: int) -> None:
    given_ = mixed(workers)
    found = near_labels_on_ray(*given_[:2], given_[2].__getitem__, 3, 6.0, Run(object_store_mb=200, cpus=workers))
    expected = labels_of(given_, 3, 6.0)
    assert found.tolist() == expected == defined(*given_, 3, 6.0)
    assert 300 < len(set(expected)) < 900


@pytest.mark.integration
def test_on_ray_the_same_when_workers_are_killed(
    local_ray: None, small_tasks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first worker at each of the two steps is killed in the middle of its work; Ray does that task again."""

    def deadly(real: Callable[..., pa.Table], marker: str) -> Callable[..., pa.Table]:
        def work(table: pa.Table, **options: Any) -> pa.Table:
            result = real(table, **options)
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return result
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still alive")

        return work

    for step in ("_connect_bucket", "_compare_batch"):
        monkeypatch.setattr(near, step, deadly(getattr(near, step), str(tmp_path / step)))
    given_ = mixed(7)
    found = near_labels_on_ray(*given_[:2], given_[2].__getitem__, 3, 6.0, RUN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_compare_batch", "_connect_bucket"]
    assert found.tolist() == labels_of(given_, 3, 6.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 150), st.integers(1, 60), st.randoms(use_true_random=False))
def test_batches_keep_groups_whole(seed: int, n: int, size: int, random: Any) -> None:
    """However the tasks are cut and in whatever order they end, what they say together is the same."""
    given_ = crowd(np.random.default_rng(seed), n, max(1, n // 4), 1, 6)
    hashes, of = np.unique(np.concatenate(given_[:2]), return_inverse=True)
    of = of.reshape(2, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_BATCH", size)
        patch.setattr(near, "_BUCKET", size)
        forest = Forest(len(hashes))
        forest.link(of[0], of[1])
        tables = list(near._buckets(hashes, 3))
        random.shuffle(tables)
        for table in tables:
            found = near._connect_bucket(table, bits=3)
            forest.link(
                np.searchsorted(hashes, found["one"].to_numpy()), np.searchsorted(hashes, found["other"].to_numpy())
            )
        batches = list(near._batches(forest.roots(of[0]), *given_[:2], given_[2].__getitem__))
        random.shuffle(batches)
        labels = np.arange(n)
        seen: list[int] = []
        for table in batches:
            seen += table["picture"].to_pylist()
            found = near._compare_batch(table, bits=3, distance=6.0)
            labels[found["picture"].to_numpy()] = found["first"].to_numpy()
    assert len(seen) == len(set(seen))
    assert labels.tolist() == labels_of(given_, 3, 6.0)
