"""Pairs of similar vectors, without comparing all with all: k-means cells, the nearest of them probed.

Vectors are rounded to whole numbers of such a length that every product and every partial sum of a dot product is
a whole number below 2**24. In float32 these are exact, so a similarity is the same number whatever the number of
threads, the blocking or the processor, and so is everything that follows from it: no choice here is a matter of
rounding. The rounding itself moves a cosine by less than 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

LENGTH = 4000  # of a rounded vector; LENGTH**2 < 2**24
_ROUNDS = 10  # of k-means
_BLOCK = 4096  # vectors multiplied at once with all centroids
_AT_ONCE = 1 << 22  # similarities of a cell that are looked at at once: about 100 MB
CELL = 16_384  # a cell with more members is divided again

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Vectors = Callable[[Ints], Floats]  # rounded vectors (m, d) of items (m,)


def rounded(vectors: npt.NDArray[np.generic]) -> Floats:
    """Vectors (n, d) at length ``LENGTH`` in whole numbers; zero where the vector is zero or not finite."""
    result = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):  # in float64 a block at a time
        wide = np.asarray(vectors[start : start + _BLOCK], dtype=np.float64)
        wide = np.where(np.isfinite(wide).all(axis=1, keepdims=True), wide, 0.0)
        length = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
        result[start : start + _BLOCK] = np.rint(wide * (LENGTH / np.maximum(length, 1e-9)))
    return result


def fit(sample: Floats, cells: int) -> Floats:
    """Centroids (cells, d) of spherical k-means on rounded vectors; the first ``cells`` of them are the start.

    Every step is exact or rounds one number by itself, so equal samples give equal centroids. A centroid that no
    vector is nearest to stays where it was.
    """
    centroids = sample[:cells].copy()
    before: Ints | None = None
    for _ in range(_ROUNDS):
        nearest = np.concatenate([_nearest(part, centroids, 1)[:, 0] for part in _blocks(sample)])
        if before is not None and np.array_equal(nearest, before):
            break
        before = nearest
        order = np.argsort(nearest, kind="stable")
        filled, starts = np.unique(nearest[order], return_index=True)
        counts = np.diff(starts, append=len(order))
        for cell, start, count in zip(filled.tolist(), starts.tolist(), counts.tolist(), strict=True):
            # sums of whole numbers: exact in float64, in any order
            total = sample[order[start : start + count]].sum(axis=0, dtype=np.float64)
            mean = np.rint(total * (64 / count))
            length = np.sqrt((mean * mean).sum())
            if length:
                centroids[cell] = np.rint(mean * (LENGTH / length))
    return centroids


def cells_of(vectors: Floats, centroids: Floats, probes: int) -> npt.NDArray[np.int32]:
    """The ``probes`` nearest centroids of each vector, nearest first; of equally near ones the first."""
    parts = [_nearest(part, centroids, min(probes, len(centroids))) for part in _blocks(vectors)]
    return np.concatenate(parts).astype(np.int32)


def similar_pairs(
    vectors: Floats, items: Ints, labels: Ints, similarity: float, most: int
) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Pairs of one cell at this cosine or above, for each item its ``most`` most similar ones.

    Args:
        vectors: (m, d), rounded. items: (m,) ascending, what the vectors belong to. labels: (m,); items with the
            same label are known to belong together, and are no pair.
        most: of equally similar ones those that come first.

    Returns:
        Pairs (p, 2) of items, the smaller first, each once and sorted; and the dot products (p,).
    """
    least = int(np.ceil(similarity * LENGTH * LENGTH))
    m = len(items)
    keep = min(most, m)
    found: list[Ints] = []
    products: list[npt.NDArray[np.int32]] = []
    step = max(16, _AT_ONCE // max(1, m))
    for start in range(0, m, step):
        dots = vectors[start : start + step] @ vectors.T
        close = (dots >= least) & (labels[start : start + step, None] != labels[None, :])
        # similarity first, then place: no two are equal, so the best are the same ones however they are found
        key = np.where(close, dots.astype(np.int64) * m + np.arange(m - 1, -1, -1), -1)
        best = np.argpartition(key, m - keep, axis=1)[:, m - keep :]
        row, column = np.nonzero(np.take_along_axis(key, best, axis=1) >= 0)
        other = best[row, column]
        a, b = items[row + start], items[other]
        found.append(np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1))
        products.append(dots[row, other].astype(np.int32))
    return unique_pairs(np.concatenate(found), np.concatenate(products)) if found else no_pairs()


def unique_pairs(pairs: Ints, products: npt.NDArray[np.int32]) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Every pair once, sorted, with its product."""
    kept, at = np.unique(pairs, axis=0, return_index=True)
    return kept, products[at]


def no_pairs() -> tuple[Ints, npt.NDArray[np.int32]]:
    return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.int32)


def cells(items: Ints, vectors: Vectors, centroids: Floats, probes: int, depth: int = 0) -> Iterator[Ints]:
    """The members of every cell of two or more, ascending; an item is in each of its ``probes`` nearest cells.

    A cell of more than ``CELL`` members is divided by centroids of its own. Where that does not help, because the
    vectors are nearly all the same, it is cut into lengths of ``CELL`` in the order of the items.
    """
    nearest = np.concatenate(
        [cells_of(vectors(items[s : s + _BLOCK]), centroids, probes) for s in range(0, len(items), _BLOCK)]
    )
    flat = nearest.ravel()
    order = np.argsort(flat, kind="stable")
    _, starts = np.unique(flat[order], return_index=True)
    for some in np.split(order, starts[1:]):
        members = items[some // nearest.shape[1]]
        if len(members) <= CELL:
            if len(members) > 1:
                yield members
        elif len(members) > 0.9 * len(items) or depth >= 8:
            yield from np.array_split(members, -(-len(members) // CELL))
        else:
            step = -(-len(members) // (4 * CELL))
            count = 2 * -(-len(members) // CELL)
            # any members do as a sample, so long as the same are taken each time
            yield from cells(members, vectors, fit(vectors(members[::step]), count), probes, depth + 1)


def _nearest(vectors: Floats, centroids: Floats, probes: int) -> Ints:
    dots = vectors @ centroids.T
    found = np.empty((len(vectors), probes), dtype=np.int64)
    rows = np.arange(len(vectors))
    for probe in range(probes):
        found[:, probe] = dots.argmax(axis=1)
        dots[rows, found[:, probe]] = -np.inf
    return found


def _blocks(vectors: Floats) -> Iterator[Floats]:
    for start in range(0, len(vectors), _BLOCK):
        yield vectors[start : start + _BLOCK]
