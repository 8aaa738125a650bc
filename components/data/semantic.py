"""Semantic duplicates: pictures whose embeddings are similar, confirmed by laying them over each other.

Candidates are found as in SemDeDup (Abbas et al. 2023): k-means on a sample, then cosines within the cells, each
picture in its nearest few. A similar embedding says that two pictures show the same thing, which different pictures
do as well, so that alone ties nothing: a pair counts when :mod:`components.data.verifying` finds one to be a copy of
the other (unless the recipe asks for similarity alone, as the paper does).

From ``RAY_ROWS`` pictures on the cells, and then the pairs, are Ray tasks. Their sizes do not depend on the number
of workers and similarities are exact (:mod:`components.data.neighbours`), so neither does the outcome.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.contracts.recipe import Prepare, Run
from components.data.clusters import Forest, Ints
from components.data.embedding import BUILT_IN
from components.data.neighbours import Floats, cells, fit, no_pairs, rounded, similar_pairs, unique_pairs
from components.data.sketches import SKETCH_BYTES
from components.data.waves import in_waves
from components.runtime.cluster import ray_session
from components.runtime.progress import Progress

if TYPE_CHECKING:
    from components.data.scores import Scores

RAY_ROWS = 50_000  # pictures from which on the cells are compared in Ray tasks
RAY_PAIRS = 20_000  # candidates from which on they are confirmed in Ray tasks
UNDIVIDED = 10_000  # up to so many pictures there is one cell: all are compared with all
LEADERS = 8  # pictures of a near cluster that the others are compared with
_TASK_ROWS = 16_384  # pictures a task: cells are put together up to here
_TASK_PAIRS = 512

Vectors16 = npt.NDArray[np.float16]
Sketches = npt.NDArray[np.uint8]
Apply = Callable[[Iterable[pa.Table], Callable[[pa.Table], pa.Table]], Iterator[pa.Table]]


def semantic_pairs(
    scores: Scores, at: Ints, rules: Prepare, run: Run, known: Ints | None = None, ray_rows: int = RAY_ROWS
) -> Ints:
    """Pairs that tie all semantic duplicates among these samples together.

    Args:
        scores: columns of all samples.
        at: ascending positions of the samples to compare.
        rules: ``embedding`` and ``semantic``.
        run: circumstance.
        known: beside ``at``; samples with the same number are tied already (by the tiers before) and are not
            compared. None: no two are.
        ray_rows: samples from which on Ray tasks do it.

    Returns:
        Positions (m, 2), the smaller first, sorted: of every cluster enough pairs to connect it, not all.

    Raises:
        ArtifactError: the scores hold no embeddings.
    """
    at = np.asarray(at, dtype=np.int64)
    labels = np.arange(len(at), dtype=np.int64) if known is None else np.asarray(known, dtype=np.int64)
    vectors = scores.embeddings(at)
    # zeros stand for samples without an embedding; the order of the sample for k-means is that of the ids
    blocks = range(0, len(at), _TASK_ROWS)
    given = [(vectors[start : start + _TASK_ROWS] != 0).any(axis=1) for start in blocks]
    here = np.flatnonzero(np.concatenate([np.empty(0, dtype=bool), *given])).astype(np.int64)
    order = here[np.argsort(scores.ids[at[here]], kind="stable")]
    pairs, products = candidates(vectors, here, order, labels, rules, run, ray_rows)
    if not rules.semantic.verify:
        return np.asarray(at[pairs], dtype=np.int64)
    best_first = np.lexsort((pairs[:, 1], pairs[:, 0], -products))
    tied = confirmed(pairs[best_first], labels, lambda some: scores.sketches(at[some]), run, ray_rows)
    return np.asarray(at[tied], dtype=np.int64)


def candidates(
    vectors: Vectors16, items: Ints, order: Ints, labels: Ints, rules: Prepare, run: Run, ray_rows: int = RAY_ROWS
) -> tuple[Ints, npt.NDArray[np.int32]]:
    """Pairs of items whose vectors are similar, of each item its most similar ones.

    Args:
        vectors: (n, d). items: ascending places in ``vectors``. order: the same items in an order that does not
            depend on how they came here; the first are the sample for k-means. labels: (n,), see
            :func:`semantic_pairs`.

    Returns:
        Pairs (m, 2), sorted, and the dot products of their rounded vectors (m,).
    """
    semantic = rules.semantic
    if len(items) < 2:
        return no_pairs()

    def get(some: Ints) -> Floats:
        return rounded(vectors[some])

    count = semantic.clusters or (isqrt(len(items)) if len(items) > UNDIVIDED else 1)
    sample = get(order[: max(semantic.sample, count)])
    members = cells(items, get, fit(sample, min(count, len(sample))), semantic.probes)
    work = _Cells(similarity_of(rules), semantic.neighbours)
    found, products = [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=np.int32)]
    for result in _apply(len(items) >= ray_rows, run)(_cell_tables(members, vectors, labels), work):
        found.append(np.stack([result["one"].to_numpy(), result["other"].to_numpy()], axis=1))
        products.append(result["product"].to_numpy())
    return unique_pairs(np.concatenate(found), np.concatenate(products))


def confirmed(
    pairs: Ints, labels: Ints, sketches: Callable[[Ints], Sketches], run: Run, ray_rows: int = RAY_ROWS
) -> Ints:
    """Those of the pairs that are copies, as many as connect them.

    Pairs are taken in rounds, first the best one of each component, then twice as many each time (after Borůvka);
    what is connected by then is not compared. The components of the result are those of all pairs that are copies.

    Args:
        pairs: (m, 2) of items, best first. labels: (n,), see :func:`semantic_pairs`.
        sketches: gives the sketches of items.
    """
    forest = Forest(len(labels))
    forest.link(np.arange(len(labels), dtype=np.int64), _first_of(labels))
    tied = [np.empty((0, 2), dtype=np.int64)]
    large = len(pairs) >= RAY_PAIRS or len(labels) >= ray_rows
    progress = Progress("compare look-alikes", len(pairs), "pairs") if len(pairs) >= _TASK_PAIRS else None
    left, quota = pairs, 1
    with ray_session(run) if large else contextlib.nullcontext():
        while len(left):
            roots = np.stack([forest.roots(left[:, 0]), forest.roots(left[:, 1])])
            apart = roots[0] != roots[1]
            left, roots = left[apart], roots[:, apart]
            now = (_rank(roots) < quota).any(axis=0)
            for result in _apply(large, run)(_pair_tables(left[now], sketches), _confirm):
                copies = np.stack([result["one"].to_numpy(), result["other"].to_numpy()], axis=1)
                forest.link(copies[:, 0], copies[:, 1])
                tied.append(copies)
            left, quota = left[~now], 2 * quota
            if progress:
                progress.update(len(pairs) - len(left))
    if progress:
        progress.close()
    return np.unique(np.concatenate(tied), axis=0)


def _rank(roots: Ints) -> Ints:
    """For both ends (2, m) of every pair how many pairs of its component come before it."""
    flat = roots.T.ravel()  # in the order of the pairs
    order = np.argsort(flat, kind="stable")
    new = np.diff(flat[order], prepend=-1) != 0
    rank = np.empty(len(flat), dtype=np.int64)
    rank[order] = np.arange(len(flat)) - np.flatnonzero(new)[np.cumsum(new) - 1]
    return rank.reshape(-1, 2).T


def upheld(scores: Scores, at: Ints, labels: Ints, run: Run, ray_rows: int = RAY_ROWS) -> Ints:
    """Labels of the near tier after a closer look: graphics that differ in a detail are apart again.

    A hash and a thumbnail hardly see the hand of a clock. So the members of a near cluster, in their order, are
    compared with the first of it, and those that :meth:`Comparison.another` tells apart with the next ones, up to
    ``LEADERS``; photographs stay as they are.

    Args:
        scores: columns of all samples. at: (n,) positions. labels: (n,) the first place in ``at`` that each is tied
            to. run, ray_rows: as in :func:`semantic_pairs`.

    Returns:
        Labels (n,), the first place of each cluster as it is now.
    """
    result = labels.copy()
    sizes = np.bincount(labels, minlength=len(labels))
    several = np.flatnonzero(sizes[labels] > 1)
    several = several[np.argsort(labels[several], kind="stable")]
    tables = _member_tables(several, labels, lambda some: scores.sketches(at[some]))
    for found in _apply(len(several) >= ray_rows, run)(tables, _uphold):
        result[found["item"].to_numpy()] = found["label"].to_numpy()
    return result


def similarity_of(rules: Prepare) -> float:
    """The cosine from which on pictures are compared closely."""
    if rules.semantic.similarity is not None:
        return rules.semantic.similarity
    return 0.78 if rules.embedding == BUILT_IN else 0.96


def _first_of(labels: Ints) -> Ints:
    """For every item the first one with its label."""
    _, first, of = np.unique(labels, return_index=True, return_inverse=True)
    result: Ints = first.astype(np.int64)[of.reshape(-1)]
    return result


def _apply(large: bool, run: Run) -> Apply:
    if large:
        return lambda tables, work: in_waves(tables, work, run)
    return lambda tables, work: map(work, tables)


def _cell_tables(members: Iterable[Ints], vectors: Vectors16, labels: Ints) -> Iterator[pa.Table]:
    """Cells, put together up to ``_TASK_ROWS`` rows, with all that is needed to compare them."""
    batch: list[Ints] = []
    rows = 0
    for cell in members:
        if batch and rows + len(cell) > _TASK_ROWS:
            yield _cell_table(batch, vectors, labels)
            batch, rows = [], 0
        batch.append(cell)
        rows += len(cell)
    if batch:
        yield _cell_table(batch, vectors, labels)


def _cell_table(batch: list[Ints], vectors: Vectors16, labels: Ints) -> pa.Table:
    items = np.concatenate(batch)
    values = pa.array(np.ascontiguousarray(vectors[items]).reshape(-1).view(np.uint16))
    return pa.table(
        {
            "cell": np.repeat(np.arange(len(batch)), [len(cell) for cell in batch]),
            "item": items,
            "label": labels[items],
            "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
        }
    )


class _Cells:
    """The work of one task: every cell of a table, pair by pair."""

    def __init__(self, similarity: float, neighbours: int) -> None:
        self._similarity, self._neighbours = similarity, neighbours

    def __call__(self, table: pa.Table) -> pa.Table:
        # a table that has come through the object store may have several chunks
        cell, item, label = (table[name].to_numpy() for name in ("cell", "item", "label"))
        flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = flat.view(np.float16).reshape(len(item), -1)
        pairs, products = [], []
        for start, stop in _runs(cell):
            found, product = similar_pairs(
                rounded(vectors[start:stop]), item[start:stop], label[start:stop], self._similarity, self._neighbours
            )
            pairs.append(found)
            products.append(product)
        kept, product = unique_pairs(np.concatenate(pairs), np.concatenate(products)) if pairs else no_pairs()
        return pa.table({"one": kept[:, 0], "other": kept[:, 1], "product": product})


def _runs(cell: Ints) -> Iterator[tuple[int, int]]:
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    yield from zip(starts.tolist(), [*starts[1:].tolist(), len(cell)], strict=True)


def _pair_tables(pairs: Ints, sketches: Callable[[Ints], Sketches]) -> Iterator[pa.Table]:
    for start in range(0, len(pairs), _TASK_PAIRS):
        some = pairs[start : start + _TASK_PAIRS]
        columns = {"one": pa.array(some[:, 0]), "other": pa.array(some[:, 1])}
        for name, side in (("one_sketch", 0), ("other_sketch", 1)):
            data = pa.py_buffer(np.ascontiguousarray(sketches(some[:, side])))
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(SKETCH_BYTES), len(some), [None, data])
        yield pa.table(columns)


def _member_tables(items: Ints, labels: Ints, sketches: Callable[[Ints], Sketches]) -> Iterator[pa.Table]:
    """Whole clusters, put together up to ``_TASK_PAIRS`` members; ``items`` lie cluster by cluster."""
    ends = np.flatnonzero(np.diff(labels[items], append=-1)) + 1
    start = 0
    while start < len(items):
        later = ends[(ends > start) & (ends <= start + _TASK_PAIRS)]
        stop = int(later[-1] if len(later) else ends[ends > start][0])
        some = items[start:stop]
        data = pa.py_buffer(np.ascontiguousarray(sketches(some)))
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(SKETCH_BYTES), len(some), [None, data])
        yield pa.table({"item": some, "label": labels[some], "sketch": column})
        start = stop


def _uphold(table: pa.Table) -> pa.Table:
    """Labels of whole clusters after the closer look of :func:`upheld`."""
    from components.data.verifying import Limits, compare

    limits = Limits()
    items, labels = table["item"].to_numpy(), table["label"].to_numpy()
    result, leaders = labels.copy(), list[tuple[int, bytes]]()
    for k, sketch in enumerate(table["sketch"].to_pylist()):
        if k == 0 or labels[k] != labels[k - 1]:
            leaders = []
        for item, first in leaders:
            if first == sketch:
                result[k] = item
                break
            seen = compare(np.frombuffer(first, np.uint8), np.frombuffer(sketch, np.uint8), limits)
            if seen is None or not seen.another(limits):
                result[k] = item
                break
        else:
            result[k] = items[k]
            if len(leaders) < LEADERS:
                leaders.append((int(items[k]), sketch))
    return pa.table({"item": items, "label": result})


def _confirm(table: pa.Table) -> pa.Table:
    """The rows of a table of pairs that are copies."""
    from components.data.verifying import Limits, compare

    limits = Limits()
    kept = []
    for one, other in zip(table["one_sketch"].to_pylist(), table["other_sketch"].to_pylist(), strict=True):
        found = compare(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8), limits)
        kept.append(found is not None and found.copy(limits))
    return table.select(["one", "other"]).filter(pa.array(kept, pa.bool_()))
