"""Duplicates in three tiers, each a set of pairs, joined into clusters.

* exact: equal bytes of the source, or equal pixels (:mod:`components.data.exact`);
* near: perceptual hash and thumbnail, mirror images included (:mod:`components.data.near`);
* semantic: embeddings (:mod:`components.data.semantic`), where the recipe names a model.

A cluster is a connected component of the pairs of all tiers. No order of work, number of workers or repeated task
changes it, nor who survives.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.recipe import Prepare, Run
from components.data import semantic
from components.data.clusters import Forest, Ints
from components.data.exact import equal_pairs, equal_pairs_on_ray
from components.data.near import near_labels, near_labels_on_ray
from components.runtime.cluster import ray_session

if TYPE_CHECKING:
    from components.data.scores import Scores

RAY_ROWS = 2_000_000  # from here on the work is worth starting Ray: one core alone does a million in seconds
EXACT, NEAR, SEMANTIC = 1, 2, 3


@dataclass(frozen=True)
class Duplicates:
    """What :func:`find_duplicates` says of the positions ``at``; all arrays run beside it.

    ``first`` and ``survivor`` hold positions among the scores (members of ``at``). A picture without duplicates
    is its own first member and its own survivor.

    Attributes:
        first: int64, the first member of the picture's cluster: of the earliest collection, there of the
            smallest id. A collection added at the end does not change the first member of a cluster, unless it
            ties two clusters together.
        survivor: int64, the member that stays for this picture: best resolution at the source, then quality, then
            smallest id. Where ``rules.near_duplicates`` is off only exact copies have another survivor than
            themselves; ``first`` still tells the whole cluster, which a split must not tear apart.
        tier: int8, what ties the picture to its survivor: 0 for a survivor, else ``EXACT``, ``NEAR`` or
            ``SEMANTIC``, the first of them whose pairs, with those of the tiers before, connect the two.
    """

    first: Ints
    survivor: Ints
    tier: npt.NDArray[np.int8]


def find_duplicates(scores: Scores, at: Ints, rules: Prepare, run: Run, ray_rows: int = RAY_ROWS) -> Duplicates:
    """Duplicates among the samples at these positions, in all tiers that the recipe asks for.

    Args:
        scores: columns of all samples.
        at: ascending positions of the samples that passed the filters, all of them decoded.
        rules: thresholds.
        run: circumstance. From ``ray_rows`` samples on they are compared in Ray tasks, with the same result.
    """
    at = np.asarray(at, dtype=np.int64)
    n = len(at)
    large = n >= ray_rows
    forest = Forest(n)
    spread = large or (rules.embedding is not None and n >= semantic.RAY_ROWS)
    with ray_session(run) if spread else contextlib.nullcontext():
        equal = partial(equal_pairs_on_ray, run=run) if large else equal_pairs
        forest.link(*equal(_pixel_keys(scores, at)).T)
        # pictures of equal pixels have one hash and one thumbnail: the first of them stands for all
        each = np.flatnonzero(forest.labels() == np.arange(n))
        forest.link(*equal(scores.sha256.take(pa.array(at))).T)
        exact = forest.labels()
        hashes = (scores.phash[at[each]], scores.phash_mirror[at[each]])

        def thumbs(some: Ints) -> npt.NDArray[np.uint8]:
            return scores.thumbs(at[each[some]])

        if large:
            labels = near_labels_on_ray(*hashes, thumbs, rules.phash_bits, rules.thumb_distance, run)
        else:
            labels = near_labels(*hashes, thumbs, rules.phash_bits, rules.thumb_distance)
        if rules.embedding is not None:
            labels = semantic.upheld(scores, at[each], labels, run)
        forest.link(each, each[labels])
        near = forest.labels()
        if rules.embedding is not None:
            pairs = np.searchsorted(at, semantic.semantic_pairs(scores, at[each], rules, run, known=near[each]))
            forest.link(pairs[:, 0], pairs[:, 1])
        cluster = forest.labels()
    ids, sources = scores.ids[at], scores.sources[at]
    size = scores.widths[at].astype(np.int64) * scores.heights[at]
    first = best_of(cluster, [sources, ids])
    survivor = best_of(cluster if rules.near_duplicates else exact, [-size, -scores.quality[at].astype(int), ids])
    tier = np.where(exact == exact[survivor], EXACT, np.where(near == near[survivor], NEAR, SEMANTIC))
    tier[survivor == np.arange(n)] = 0
    return Duplicates(at[first], at[survivor], tier.astype(np.int8))


def best_of(labels: Ints, keys: list[npt.NDArray[np.generic]]) -> Ints:
    """For every item the item of its label that is smallest by these keys, the first key first, then by position.

    Args:
        labels: (n,) in 0..n-1. keys: arrays (n,).
    """
    best = np.arange(len(labels), dtype=np.int64)
    several = np.flatnonzero(np.bincount(labels, minlength=1)[labels] > 1)
    order = several[np.lexsort([key[several] for key in reversed([labels, *keys])])]
    leads = np.flatnonzero(np.diff(labels[order], prepend=-1))
    best[order] = np.repeat(order[leads], np.diff(leads, append=len(order)))
    return best


def _pixel_keys(scores: Scores, at: Ints) -> pa.LargeStringArray:
    """Digest of the pixels and their width: equal bytes of another shape are another picture."""
    widths = pa.array(scores.kept_widths[at]).cast(pa.large_string())
    return pc.binary_join_element_wise(
        scores.pixel_sha256.take(pa.array(at)), widths, pa.scalar(":", pa.large_string())
    )
