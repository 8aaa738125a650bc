"""All pairs of 64-bit hashes that differ in at most some bits, without comparing all with all.

Of ``bits + 1`` bands of the hash at least one is equal between two hashes that differ in at most ``bits`` bits
(Manku, Jain and Das Sarma 2007), so only hashes with an equal band are compared and no pair is missed. Where too
many share a band they are split in the same way by bands of the remaining bits, if that spares comparisons, so that
a band which says little (real hashes are skewed) costs no quadratic search, and none costs more than one.

The time grows with the number of pairs compared: for 1M random hashes 0.1 thousand million at 3 bits; from about
8 bits on it is near that of comparing all with all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
_CROWD = 1024  # hashes with an equal band that are compared all with all; more are split by further bands
_SORTING = 100  # comparisons that take as long as sorting one hash
_CHUNK = 1 << 14  # hashes that are compared with those after them at once, which fit a core's cache


def bands(bits: int) -> list[int]:
    """Masks of the ``bits + 1`` bands of 64 bits; ``bits``: 0..16."""
    return _masks(np.arange(64, dtype=np.uint64), bits)


def close_pairs(hashes: Hashes, bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of positions of hashes that differ in at most ``bits`` bits, in blocks, some more than once.

    Args:
        hashes: (n,) distinct. bits: 0..16.
    """
    for mask in bands(bits):
        yield from close_in_band(hashes, mask, bits)


def close_in_band(hashes: Hashes, mask: int, bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Of :func:`close_pairs` those that are equal in the bits of ``mask``, one of :func:`bands`."""
    free = np.arange(64, dtype=np.uint64)
    free = free[(np.uint64(mask) >> free) & np.uint64(1) == 0]
    rows, keys = _by_band(hashes, mask)
    yield from _within(hashes, rows, _group_ends(keys), free, bits)


def _within(hashes: Hashes, rows: Ints, ends: Ints, free: Hashes, bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Close pairs inside groups: ``rows`` lie group by group, ``ends[k]`` is where the group of ``rows[k]`` ends.

    The hashes of a group differ in ``free`` bit positions only.
    """
    starts = np.flatnonzero(np.diff(ends, prepend=0))
    crowded = (ends[starts] - starts > _CROWD) & (len(free) > bits)
    in_crowd = np.repeat(crowded, ends[starts] - starts)
    yield from _compared(hashes[rows], rows, np.where(in_crowd, 0, ends), bits)
    if not crowded.any():
        return
    left, sizes = rows[in_crowd], (ends[starts] - starts)[crowded]
    begins = np.cumsum(sizes) - sizes
    group = np.repeat(np.arange(len(sizes)), sizes)
    # bands that all tell about as much: bits dealt by how often they differ inside the groups
    differ = hashes[left] ^ hashes[left[begins]][group]
    share = np.array([((differ >> bit) & np.uint64(1)).mean() for bit in free])
    masks = _masks(free[np.argsort(-np.minimum(share, 1 - share), kind="stable")], bits, dealt=True)
    splits = []
    comparisons = np.zeros(len(sizes), dtype=np.int64)
    for mask in masks:
        keys = hashes[left] & np.uint64(mask)
        order = np.lexsort((keys, group))
        inner = _group_ends(keys[order], group[order])
        comparisons += np.add.reduceat(inner - np.arange(len(inner)), begins)
        splits.append((left[order], inner))
    # a group is split where that spares more than it costs, so that the work is never above all with all
    worth = comparisons + _SORTING * len(masks) * sizes < sizes * (sizes - 1) // 2
    keep = np.repeat(worth, sizes)
    together = left[~keep]
    yield from _compared(hashes[together], together, np.repeat(np.cumsum(sizes[~worth]), sizes[~worth]), bits)
    gone = np.cumsum(~keep)
    for mask, (inner_rows, inner) in zip(masks, splits, strict=True):
        rest = free[(np.uint64(mask) >> free) & np.uint64(1) == 0]
        yield from _within(hashes, inner_rows[keep], (inner - gone)[keep], rest, bits)


def _compared(values: Hashes, rows: Ints, ends: Ints, bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Every value against those after it up to its end; values of end 0 need not be."""
    for start in range(0, len(values), _CHUNK):
        place = np.arange(start, min(start + _CHUNK, len(values)))
        reach = ends[start : start + _CHUNK] - place  # values from this one to the end of its group
        left = len(place) - np.searchsorted(np.sort(reach), np.arange(max(1, reach.max()) + 1), "right")
        found: list[Ints] = []
        partners: list[Ints] = []
        for shift in range(1, int(reach.max())):
            if 3 * left[shift] > len(place):  # most of them: in one stroke; beyond a group a close pair is no less one
                stop = min(start + _CHUNK, len(values) - shift)
                apart = np.bitwise_count(values[start:stop] ^ values[start + shift : stop + shift])
                a = np.flatnonzero(apart <= bits) + start
            else:
                keep = reach > shift
                place, reach = place[keep], reach[keep]
                a = place[np.bitwise_count(values[place] ^ values[place + shift]) <= bits]
            if len(a):
                found.append(a)
                partners.append(a + shift)
        if found:
            yield rows[np.concatenate(found)], rows[np.concatenate(partners)]


def _by_band(hashes: Hashes, mask: int) -> tuple[Ints, npt.NDArray[np.unsignedinteger[Any]]]:
    """Order of the hashes by a band, and the band's bits in that order."""
    low = (mask & -mask).bit_length() - 1
    keys: npt.NDArray[np.unsignedinteger[Any]] = (hashes & np.uint64(mask)) >> np.uint64(low)
    if mask >> low < 1 << 16:
        keys = keys.astype(np.uint16)  # sorted by radix: in linear time
    order = np.argsort(keys, kind="stable")
    return order, keys[order]


def _group_ends(*keys: npt.NDArray[np.generic]) -> Ints:
    """For every row of sorted keys the end of the run of equal rows that it is in."""
    n = len(keys[0])
    if not n:
        return np.empty(0, dtype=np.int64)
    changes = np.zeros(n - 1, dtype=bool)
    for key in keys:
        changes |= key[1:] != key[:-1]
    bounds = np.concatenate([[0], np.flatnonzero(changes) + 1, [n]])
    return np.repeat(bounds[1:], np.diff(bounds)).astype(np.int64)


def _masks(positions: Hashes, bits: int, dealt: bool = False) -> list[int]:
    """Masks of ``bits + 1`` bands of these positions, each of neighbours, or dealt one by one."""
    parts = [positions[k :: bits + 1] for k in range(bits + 1)] if dealt else np.array_split(positions, bits + 1)
    return [sum(1 << position for position in part.tolist()) for part in parts]
