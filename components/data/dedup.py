"""Duplicates: exact by the source's bytes, near by perceptual hash and thumbnail.

Two pictures are near-duplicates when their 64-bit hashes differ in at most ``bits`` bits and the mean absolute
difference of their 16x16 RGB thumbnails is at most ``distance`` (0..255), each taken with the picture or its
mirror image, whichever is nearer. The hash alone does not see colour: a red and a blue square are equal to it.

Candidates come from bands: of ``bits + 1`` bands at least one is equal between hashes that differ in at most
``bits`` bits, so none is missed. Pictures of equal hash are one entry there, and within such an entry only
pictures whose mean brightness is near enough are compared, so that a crowded hash costs no quadratic search.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Thumbs = npt.NDArray[np.uint8]  # (n, 16, 16, 3)
_PAIRS_AT_ONCE = 50_000  # compared at once: at most about 300 MB for their thumbnails
_SLACK = 1e-3


def first_of_equal(keys: list[str]) -> Ints:
    """For every item the position of the first item with an equal key (its own where it is the first)."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)], dtype=np.int64)


def near_clusters(plain: Hashes, mirrored: Hashes, thumbs: Thumbs, bits: int, distance: float) -> Ints:
    """For every picture the position of the first member of its cluster of near-duplicates.

    Clusters are the connected components of the pairs, so the result does not depend on the order in which
    pairs are found; pictures that come first in line survive.

    Args:
        plain: (n,) hashes. mirrored: (n,) hashes of the mirror images. thumbs: (n, 16, 16, 3).
        bits: 0..16. distance: 0..255.
    """
    n = len(plain)
    pairs = near_pairs(plain, mirrored, thumbs, bits, distance)
    if not len(pairs):
        return np.arange(n, dtype=np.int64)
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, labels = connected_components(links, directed=False)
    first = np.full(int(labels.max()) + 1, n, dtype=np.int64)
    np.minimum.at(first, labels, np.arange(n, dtype=np.int64))
    return np.asarray(first[labels], dtype=np.int64)


def near_pairs(plain: Hashes, mirrored: Hashes, thumbs: Thumbs, bits: int, distance: float) -> Ints:
    """All pairs (i < j) of near-duplicates, each once, sorted: (m, 2)."""
    n = len(plain)
    if n < 2:
        return np.empty((0, 2), dtype=np.int64)
    entries, entry_of = np.unique(np.stack([plain, mirrored], axis=1), axis=0, return_inverse=True)
    entry_of = entry_of.reshape(-1).astype(np.int64)
    # the mean of every row of the thumbnail, a bound of the distance that mirroring does not change
    outline = thumbs.mean(axis=2, dtype=np.float32).reshape(n, -1)
    brightness = outline.mean(axis=1, dtype=np.float64)
    order = np.lexsort((brightness, entry_of))
    place = entry_of[order] * 1024.0 + brightness[order]  # members of an entry lie together, darkest first
    sizes = np.bincount(entry_of, minlength=len(entries))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    found = [np.empty((0, 2), dtype=np.int64)]
    for one, other in _close_entries(entries[:, 0], entries[:, 1], bits):
        # every member of `one` against the members of `other` of about its brightness
        repeats = sizes[one]
        members = order[_ranges(starts[one], repeats)]
        base = np.repeat(other, repeats) * 1024.0 + brightness[members]
        low = np.searchsorted(place, base - distance - _SLACK, "left")
        high = np.searchsorted(place, base + distance + _SLACK, "right")
        for a, b in _expanded(members, low, high):
            partner = order[b]
            keep = a < partner if len(one) and np.array_equal(one, other) else a != partner
            i, j = np.minimum(a[keep], partner[keep]), np.maximum(a[keep], partner[keep])
            bound = np.abs(outline[i] - outline[j]).mean(axis=1) <= distance + _SLACK
            i, j = i[bound], j[bound]
            near = thumb_distances(thumbs[i], thumbs[j]) <= distance
            found.append(np.stack([i[near], j[near]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def thumb_distances(some: Thumbs, others: Thumbs) -> npt.NDArray[np.float64]:
    """Mean absolute difference (0..255) of each pair of thumbnails, of the picture or its mirror image."""
    a, b = some.astype(np.int16), others.astype(np.int16)
    straight = np.abs(a - b).sum(axis=(1, 2, 3), dtype=np.int64)
    turned = np.abs(a - b[:, :, ::-1]).sum(axis=(1, 2, 3), dtype=np.int64)
    result: npt.NDArray[np.float64] = np.minimum(straight, turned) / float(np.prod(a.shape[1:]))
    return result


def hash_distances(plain: Hashes, mirrored: Hashes, i: Ints, j: Ints) -> npt.NDArray[np.uint8]:
    """Differing bits of each pair, of the picture or its mirror image."""
    straight = np.bitwise_count(plain[i] ^ plain[j])
    turned = np.minimum(np.bitwise_count(plain[i] ^ mirrored[j]), np.bitwise_count(mirrored[i] ^ plain[j]))
    result: npt.NDArray[np.uint8] = np.minimum(straight, turned)
    return result


def _close_entries(plain: Hashes, mirrored: Hashes, bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of distinct hashes within ``bits``, in blocks and possibly more than once; first all with themselves."""
    every = np.arange(len(plain), dtype=np.int64)
    yield every, every
    bands = bits + 1
    edges = [64 * b // bands for b in range(bands + 1)]
    for begin, end in pairwise(edges):
        mask = np.uint64((1 << (end - begin)) - 1)
        keys = (plain >> np.uint64(begin)) & mask
        by_key = np.argsort(keys, kind="stable").astype(np.int64)
        sorted_keys = keys[by_key]
        for asked in (keys, (mirrored >> np.uint64(begin)) & mask):
            low = np.searchsorted(sorted_keys, asked, "left")
            high = np.searchsorted(sorted_keys, asked, "right")
            for a, b in _expanded(every, low, high):
                other = by_key[b]
                close = (a != other) & (hash_distances(plain, mirrored, a, other) <= bits)
                if close.any():
                    yield np.minimum(a[close], other[close]), np.maximum(a[close], other[close])


def _expanded(items: Ints, low: Any, high: Any) -> Iterator[tuple[Ints, Ints]]:
    """Every item with every position of its range ``low:high``, in blocks of bounded size."""
    counts = np.asarray(high - low, dtype=np.int64)
    ends = np.cumsum(counts)
    start = 0
    while start < len(items):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PAIRS_AT_ONCE, "right")))
        block = slice(start, stop)
        yield np.repeat(items[block], counts[block]), _ranges(np.asarray(low[block]), counts[block])
        start = stop


def _ranges(starts: Any, lengths: Any) -> Ints:
    """The numbers start, start+1, ... of every range, one after the other."""
    lengths = np.asarray(lengths, dtype=np.int64)
    total = int(lengths.sum())
    offsets = np.repeat(np.cumsum(lengths) - lengths, lengths)
    result: Ints = np.arange(total, dtype=np.int64) - offsets + np.repeat(np.asarray(starts, dtype=np.int64), lengths)
    return result
