"""Exact duplicates: equal bytes or equal pixels, by their digests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.recipe import Run
from components.data.clusters import Ints
from components.data.waves import in_waves

_BUCKET = 262_144  # rows a task


def equal_pairs(keys: pa.LargeStringArray) -> Ints:
    """Every item whose key came before, with the first item of that key: (m, 2), the first on the left.

    Null is equal to nothing.
    """
    at = np.flatnonzero(keys.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64)
    first = _first_of_equal(keys.drop_null())
    again = first != np.arange(len(at))
    return np.stack([at[first[again]], at[again]], axis=1)


def equal_pairs_on_ray(keys: pa.LargeStringArray, run: Run) -> Ints:
    """As :func:`equal_pairs`, in Ray tasks, one for each bucket of keys."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for table in in_waves(_buckets(keys), _pairs_of_bucket, run):
        found.append(np.stack([table["first"].to_numpy(), table["again"].to_numpy()], axis=1))
    return np.concatenate(found)


def _first_of_equal(keys: pa.LargeStringArray) -> Ints:
    codes = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    first = np.empty(codes.max(initial=-1) + 1, dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # written last: the first
    return np.asarray(first[codes])


def _buckets(keys: pa.LargeStringArray) -> Iterator[pa.Table]:
    """Items by the beginning of their key, many beginnings a bucket: a key that is frequent fills no memory alone."""
    at = np.flatnonzero(keys.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64)
    keys = keys.drop_null()
    starts = pc.utf8_slice_codeunits(keys, 0, 4).dictionary_encode()
    count = max(1, len(keys) // _BUCKET)
    bucket = starts.indices.to_numpy(zero_copy_only=False).astype(np.int64) % count
    order = np.argsort(bucket, kind="stable")
    for rows in np.split(order, np.cumsum(np.bincount(bucket, minlength=count))[:-1]):
        yield pa.table({"item": at[rows], "key": keys.take(pa.array(rows))})


def _pairs_of_bucket(table: pa.Table) -> pa.Table:
    items = table["item"].to_numpy()
    first = _first_of_equal(table["key"].combine_chunks())
    again = first != np.arange(len(items))
    return pa.table({"first": items[first[again]], "again": items[again]})
