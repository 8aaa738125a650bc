"""Near-duplicates against the definition itself, pair by pair."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from components.data.dedup import first_of_equal, hash_distances, near_clusters, near_pairs, thumb_distances
from components.data.hashing import phash, score


def crowd(rng: np.random.Generator, n: int, centres: int, flips: int, noise: int) -> tuple[np.ndarray, ...]:
    """Hashes and thumbnails around a few centres, as copies and look-alikes of pictures are."""
    centre_hash = rng.integers(0, 2**64, (centres, 2), dtype=np.uint64)
    centre_thumb = rng.integers(0, 256, (centres, 16, 16, 3))
    of = rng.integers(0, centres, n)
    hashes = centre_hash[of]
    for _ in range(flips):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, hashes.shape).astype(np.uint64))
    thumbs = np.clip(centre_thumb[of] + rng.integers(-noise, noise + 1, (n, 16, 16, 3)), 0, 255).astype(np.uint8)
    turned = rng.random(n) < 0.3  # mirror images
    thumbs[turned] = thumbs[turned, :, ::-1]
    hashes[turned] = hashes[turned, ::-1]
    return hashes[:, 0].copy(), hashes[:, 1].copy(), thumbs


def brute(
    plain: np.ndarray, mirrored: np.ndarray, thumbs: np.ndarray, bits: int, distance: float
) -> set[tuple[int, int]]:
    i, j = np.triu_indices(len(plain), 1)
    near = hash_distances(plain, mirrored, i, j) <= bits
    i, j = i[near], j[near]
    close = thumb_distances(thumbs[i], thumbs[j]) <= distance
    return {(int(a), int(b)) for a, b in zip(i[close], j[close], strict=True)}


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(0, 140), st.integers(1, 6), st.integers(0, 3), st.integers(0, 16),
    st.integers(0, 8), st.sampled_from([0.0, 3.0, 6.0, 255.0]),
)  # fmt: skip
def test_pairs_are_those_of_the_definition(
    seed: int, n: int, centres: int, flips: int, noise: int, bits: int, distance: float
) -> None:
    given_ = crowd(np.random.default_rng(seed), n, centres, flips, noise)
    pairs = near_pairs(*given_, bits, distance)
    assert {(int(a), int(b)) for a, b in pairs} == brute(*given_, bits, distance)
    assert len(pairs) == len({(int(a), int(b)) for a, b in pairs})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 80))
def test_clusters_are_the_components_and_their_first_member_survives(seed: int, n: int) -> None:
    given_ = crowd(np.random.default_rng(seed), n, 5, 1, 10)
    firsts = near_clusters(*given_, 3, 6.0)
    parent = list(range(n))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in brute(*given_, 3, 6.0):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    assert firsts.tolist() == [root(x) for x in range(n)]


def test_one_hash_shared_by_thousands_costs_no_quadratic_search() -> None:
    n = 6000
    rng = np.random.default_rng(0)
    base = np.repeat(rng.permutation(np.linspace(0, 255, n)).reshape(n, 1, 1, 1), 16, axis=1)
    thumbs = np.broadcast_to(base, (n, 16, 16, 3)).astype(np.uint8)
    same = np.full(n, 0x5A5A5A5A5A5A5A5A, dtype=np.uint64)
    pairs = near_pairs(same, same, thumbs, 3, 0.4)  # equal greys only
    greys = thumbs[:, 0, 0, 0].astype(int)
    assert len(pairs) == sum(k * (k - 1) // 2 for k in np.bincount(greys))


def test_first_of_equal() -> None:
    assert first_of_equal(["a", "b", "a", "c", "b"]).tolist() == [0, 1, 0, 3, 1]


def scene(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small, "RGB").resize((96, 96), Image.Resampling.BICUBIC)


def recoded(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=70)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def test_the_second_hash_is_that_of_the_mirror_image() -> None:
    for seed in range(20):
        grey = scene(seed).convert("L")
        plain, mirrored = phash(grey)
        of_mirror = phash(ImageOps.mirror(grey))
        assert (plain ^ of_mirror[1]).bit_count() <= 1 and (mirrored ^ of_mirror[0]).bit_count() <= 1


def test_changed_copies_cluster_with_their_originals_and_nothing_else() -> None:
    originals = [scene(s) for s in range(40)]
    copies = [recoded(ImageOps.mirror(i)) if n % 2 else recoded(i).resize((70, 70)) for n, i in enumerate(originals)]
    scores = [score(image, 32) for image in originals + copies]
    plain, mirrored = (np.array([getattr(s, n) for s in scores], dtype=np.uint64) for n in ("phash", "phash_mirror"))
    thumbs = np.frombuffer(b"".join(s.thumb for s in scores), dtype=np.uint8).reshape(-1, 16, 16, 3)
    firsts = near_clusters(plain, mirrored, thumbs, 3, 6.0).tolist()
    assert firsts[:40] == list(range(40))
    found = [first == n for n, first in enumerate(firsts[40:])]
    assert all(first in (n, n + 40) for n, first in enumerate(firsts[40:]))
    assert sum(found) >= 36  # a coefficient near the median may fall on either side


def test_scores_have_their_shapes() -> None:
    picture = scene(1).crop((0, 0, 96, 60))
    scores = score(picture, 32)
    assert (scores.width, scores.height, len(scores.pixels), len(scores.thumb)) == (96, 60, 32 * 32 * 3, 16 * 16 * 3)
    assert score(Image.new("RGB", (40, 40), "red"), 32).grey_std == 0
    assert scores.grey_std == pytest.approx(np.asarray(picture.convert("L"), dtype=float).std(), rel=1e-4)
