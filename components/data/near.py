"""Near-duplicates: by perceptual hash, confirmed by thumbnail.

Two pictures are near-duplicates when their 64-bit hashes differ in at most ``bits`` bits and their 16x16 RGB
thumbnails are near (:func:`thumbs_near`: by ``distance``, 0..255, on average, and nowhere by far more), each taken
with the picture or its mirror image, whichever is nearer. The hash alone does not see colour: a red and a blue
square are equal to it.

What is wanted are the connected components of these pairs, not the pairs: where 100 000 pictures share a hash
there may be thousands of millions. So pictures that follow each other in brightness (and in other projections)
are compared first, which connects a crowd of look-alikes in a few rounds; of the rest only pictures that are not
connected yet are compared, and only those whose brightness lets them be near. The result is that of comparing all,
with one exception: where a picture has more than 256 of one hash, still apart from it, within reach of its
brightness, it is compared with the nearest 256 of them, so that no list of pictures makes the time quadratic.

Many pictures are compared in Ray tasks: first hashes by bucket of band, which gives the components of hashes that
are near; then the pictures of these components, some thousand a task, with their thumbnails. No pair crosses such
a component, so the result is the same, however the work is cut. In memory at once are the hashes, 48 bytes a
picture that has a near hash at all, and the thumbnails of the tasks of one wave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.contracts.recipe import Run
from components.data.close_hashes import bands, close_in_band, close_pairs
from components.data.clusters import Forest, Ints
from components.data.waves import in_waves

Hashes = npt.NDArray[np.uint64]
Thumbs = npt.NDArray[np.uint8]  # (n, 16, 16, 3)
Floats = npt.NDArray[np.floating[Any]]
THUMB_BYTES = 16 * 16 * 3
LOCAL = 14  # times the mean difference allowed is what the means of 2 x 2 pixels may differ by
_AT_ONCE = 1 << 19  # candidates weighed at once: about 60 MB
_THUMBS_AT_ONCE = 2048  # pairs of thumbnails compared at once, which fits a core's cache
_CROWD = 64  # members of a hash that are connected by further projections before they are compared
_MIRROR = np.arange(THUMB_BYTES).reshape(16, 16, 3)[:, ::-1].ravel()  # where its bytes come from
_MOST = 256  # pictures of one hash, and in a crowd of one cell, that a picture is compared with
_SLACK = 1e-3  # above the rounding of sums of 768 bytes in float32
_BATCH = 16_384  # pictures a task
_BUCKET = 65_536  # hashes a task


def near_labels(plain: Hashes, mirrored: Hashes, thumbs: Callable[[Ints], Thumbs], bits: int, distance: float) -> Ints:
    """For every picture the first that it is connected with by pairs of near-duplicates, itself if none.

    Args:
        plain: (n,) hashes. mirrored: (n,) hashes of the mirror images.
        thumbs: gives the thumbnails (m, 16, 16, 3) of pictures (m,); asked for those whose hash has a neighbour.
        bits: 0..16. distance: 0..255.
    """
    return _Comparison(plain, mirrored, thumbs, bits, distance).labels()


def near_labels_on_ray(
    plain: Hashes, mirrored: Hashes, thumbs: Callable[[Ints], Thumbs], bits: int, distance: float, run: Run
) -> Ints:
    """As :func:`near_labels`, in Ray tasks."""
    n = len(plain)
    hashes, of = np.unique(np.concatenate([plain, mirrored]), return_inverse=True)
    of = of.reshape(2, n)
    near = Forest(len(hashes))
    near.link(of[0], of[1])
    for found in in_waves(_buckets(hashes, bits), partial(_connect_bucket, bits=bits), run):
        near.link(np.searchsorted(hashes, found["one"].to_numpy()), np.searchsorted(hashes, found["other"].to_numpy()))
    group = near.roots(of[0])
    labels = np.arange(n, dtype=np.int64)
    for found in in_waves(
        _batches(group, plain, mirrored, thumbs), partial(_compare_batch, bits=bits, distance=distance), run
    ):
        labels[found["picture"].to_numpy()] = found["first"].to_numpy()
    return labels


def thumbs_near(some: Thumbs, others: Thumbs, distance: float) -> npt.NDArray[np.bool_]:
    """Which pairs of thumbnails are near, as they are or one mirrored.

    They differ by at most ``distance`` (0..255) on average, and nowhere do the means of 2 x 2 pixels differ by more
    than ``LOCAL`` times that in a channel: on an even ground one object more or less changes the average little.
    """
    a, b = some.reshape(-1, THUMB_BYTES), others.reshape(-1, THUMB_BYTES)
    near = _alike(a, b, distance)
    left = np.flatnonzero(~near)
    near[left] = _alike(a[left], np.take(b[left], _MIRROR, axis=1), distance)
    return near


def _alike(a: Thumbs, b: Thumbs, distance: float) -> npt.NDArray[np.bool_]:
    near = np.asarray(_differences(a, b) <= distance * THUMB_BYTES)
    at = np.flatnonzero(near)
    apart = (a[at].astype(np.int16) - b[at]).reshape(len(at), 8, 2, 8, 2, 3).sum(axis=(2, 4))
    near[at] = np.abs(apart).max(axis=(1, 2, 3), initial=0) <= 4 * LOCAL * distance
    return near


def _differences(a: Thumbs, b: Thumbs) -> npt.NDArray[np.uint32]:
    return np.asarray((np.maximum(a, b) - np.minimum(a, b)).sum(axis=1, dtype=np.uint32))


class _Comparison:
    """One set of pictures, compared in this process.

    Pictures are listed below each hash that they or their mirror image have, darkest first. ``outline`` holds the
    means of each quarter of the rows of a thumbnail, by channel: 12 numbers that mirroring does not change and
    whose mean difference is never above that of the thumbnails.
    """

    def __init__(
        self, plain: Hashes, mirrored: Hashes, thumbs: Callable[[Ints], Thumbs], bits: int, distance: float
    ) -> None:
        self.thumbs, self.distance = thumbs, min(distance, 256.0)
        self.forest = Forest(len(plain))
        hashes, of = np.unique(np.concatenate([plain, mirrored]), return_inverse=True)
        of = of.reshape(2, -1)
        lists = [np.empty((2, 0), dtype=np.int64), *(np.stack(found) for found in close_pairs(hashes, bits))]
        pairs = np.sort(np.concatenate(lists, axis=1), axis=0)
        self.pairs = _distinct(pairs[0] * len(hashes) + pairs[1])  # of hashes, as one number
        self.pairs_by = max(1, len(hashes))
        # only pictures whose hash is shared or has a neighbour are looked at
        twice = plain != mirrored
        shared = np.bincount(of[0], minlength=len(hashes)) + np.bincount(of[1][twice], minlength=len(hashes)) > 1
        shared[self.pairs // self.pairs_by] = True
        shared[self.pairs % self.pairs_by] = True
        entries = [(which, np.flatnonzero(shared[of[which]] & (twice | (which == 0)))) for which in (0, 1)]
        members = np.concatenate([found for _, found in entries]).astype(np.int64)
        at = _distinct(members)
        self.row = np.full(len(plain), -1, dtype=np.int64)  # of the outline of a picture
        self.row[at] = np.arange(len(at))
        self.outline = self._outlines(at)
        self.brightness = self.outline.mean(axis=1, dtype=np.float64)
        below = np.concatenate([of[which][found] for which, found in entries]).astype(np.int64)
        place = below * 1024.0 + self.brightness[self.row[members]]
        rank = np.argsort(place)
        self.members, self.below, self.place = members[rank], below[rank], place[rank]
        sizes = np.bincount(self.below, minlength=len(hashes))
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes

    def labels(self) -> Ints:
        if len(self.members):
            self._connect_neighbours()
            some, others = self.pairs // self.pairs_by, self.pairs % self.pairs_by
            own = np.flatnonzero(self.ends - self.starts > 1)
            self._compare(np.concatenate([own, some]), np.concatenate([own, others]))
        return self.forest.labels()

    def _outlines(self, at: Ints) -> Floats:
        outlines = np.empty((len(at), 12), dtype=np.float32)
        for start in range(0, len(at), 8192):
            some = self.thumbs(at[start : start + 8192])
            outlines[start : start + len(some)] = some.reshape(len(some), -1).astype(np.float32) @ _QUARTERS
        return outlines

    def _connect_neighbours(self) -> None:
        """Compare pictures below one hash that follow each other in brightness; in crowds also in other projections."""
        self._consider_following(self.members, self.below)
        crowded = (self.ends - self.starts)[self.below] > _CROWD
        if not crowded.any():
            return
        members, below = self.members[crowded], self.below[crowded]
        outline = self.outline[self.row[members]]
        for weights in _PROJECTIONS.T:
            order = np.lexsort((outline @ weights, below))
            self._consider_following(members[order], below[order])

    def _consider_following(self, members: Ints, below: Ints) -> None:
        for shift in (1, 2):
            same = np.flatnonzero(below[:-shift] == below[shift:])
            for start in range(0, len(same), _AT_ONCE):
                block = same[start : start + _AT_ONCE]
                self._consider(members[block], members[block + shift])

    def _compare(self, some: Ints, others: Ints) -> None:
        """Compare the pictures below ``some[k]`` with those below ``others[k]``, for every k."""
        sizes = self.ends - self.starts
        large = np.minimum(sizes[some], sizes[others]) > _CROWD
        for i, j in self._candidates(some[~large], others[~large]):
            self._consider(i, j)
        for one, other in zip(some[large].tolist(), others[large].tolist(), strict=True):
            self._compare_crowds(one, other)

    def _compare_crowds(self, one: int, other: int) -> None:
        """Two crowds; members of the component that most of them are in need not be compared with each other."""
        sides = [self.members[self.starts[side] : self.ends[side]] for side in (one, other)]
        if one != other:  # the nearest in brightness first: crowds that belong together are connected at once
            some, others = (self.brightness[self.row[side]] for side in sides)
            self._consider(sides[0], sides[1][np.minimum(np.searchsorted(others, some), len(others) - 1)])
        roots = [self.forest.roots(side) for side in sides]
        labels, counts = np.unique(np.concatenate(roots), return_counts=True)
        most = labels[np.argmax(counts)]
        self._compare_by_cell(sides[0][roots[0] != most], sides[1])
        if one != other:
            self._compare_by_cell(sides[1][roots[1] != most], sides[0])

    def _compare_by_cell(self, asking: Ints, asked: Ints) -> None:
        """Pictures with those that are near in three projections: two by a grid of cells, and brightness."""
        if not len(asking):
            return
        projected = self.outline[self.row[asked]] @ _PROJECTIONS
        chosen = _PROJECTIONS[:, np.argsort(projected.std(axis=0))[-2:]]  # where they differ most
        width = max(self.distance + _SLACK, 1.0)
        cells = [np.floor(self.outline[self.row[side]] @ chosen / width).astype(np.int64) for side in (asking, asked)]
        lowest = np.minimum(cells[0].min(axis=0), cells[1].min(axis=0)) - 1
        (x, y), (column, line) = (cells[0] - lowest).T, (cells[1] - lowest).T
        place = (column * 2048 + line) * 1024.0 + self.brightness[self.row[asked]]
        order = np.argsort(place)
        place, asked = place[order], asked[order]
        for step in np.ndindex(3, 3):
            cell = (x + step[0] - 1) * 2048 + y + step[1] - 1
            for i, j in self._within(asking, cell * 1024.0 + self.brightness[self.row[asking]], asked, place):
                self._consider(i, j)

    def _candidates(self, some: Ints, others: Ints) -> Iterator[tuple[Ints, Ints]]:
        sizes = self.ends - self.starts
        fewer = sizes[some] <= sizes[others]
        asking, asked = np.where(fewer, some, others), np.where(fewer, others, some)
        for pairs in _blocks(sizes[asking]):
            repeats = sizes[asking[pairs]]
            members = self.members[_ranges(self.starts[asking[pairs]], repeats)]
            at = np.repeat(asked[pairs], repeats) * 1024.0 + self.brightness[self.row[members]]
            yield from self._within(members, at, self.members, self.place)

    def _within(self, asking: Ints, at: Floats, asked: Ints, place: Floats) -> Iterator[tuple[Ints, Ints]]:
        """Every picture ``asking[k]`` with those ``asked`` that are placed near ``at[k]``, at most ``_MOST``."""
        middle = np.searchsorted(place, at)
        low = np.maximum(np.searchsorted(place, at - self.distance - _SLACK, "left"), middle - _MOST // 2)
        high = np.minimum(np.searchsorted(place, at + self.distance + _SLACK, "right"), middle + _MOST // 2)
        counts = high - low
        for block in _blocks(counts):
            yield np.repeat(asking[block], counts[block]), asked[_ranges(low[block], counts[block])]

    def _consider(self, i: Ints, j: Ints) -> None:
        """Connect those of the pairs that are near and not connected yet."""
        apart = self.forest.roots(i) != self.forest.roots(j)
        i, j = i[apart], j[apart]
        if not len(i):
            return
        differences = np.abs(self.outline[self.row[i]] - self.outline[self.row[j]]).mean(axis=1)
        possible = differences <= self.distance + _SLACK
        i, j = i[possible], j[possible]
        for start in range(0, len(i), _THUMBS_AT_ONCE):
            a, b = i[start : start + _THUMBS_AT_ONCE], j[start : start + _THUMBS_AT_ONCE]
            apart = self.forest.roots(a) != self.forest.roots(b)
            a, b = a[apart], b[apart]
            if len(a):
                near = thumbs_near(self.thumbs(a), self.thumbs(b), self.distance)
                self.forest.link(a[near], b[near])


# Means of four rows, by channel: (768, 12). Sums of bytes are exact in float32, in any order.
_QUARTERS = np.kron(np.eye(4), np.tile(np.eye(3), (64, 1))).astype(np.float32) / np.float32(64)
# Beside brightness: red against blue, green against both, upper against lower half, middle against rim; (12, 4).
# No projection of two thumbnails differs more than the thumbnails do on average.
_PROJECTIONS = (
    np.stack(
        [
            np.tile([1.0, 0.0, -1.0], 4),
            np.tile([0.5, -1.0, 0.5], 4),
            np.repeat([1.0, 1.0, -1.0, -1.0], 3),
            np.repeat([1.0, -1.0, -1.0, 1.0], 3),
        ],
        axis=1,
    ).astype(np.float32)
    / 12
)


def _connect_bucket(table: pa.Table, bits: int) -> pa.Table:
    """Work of a task: the hashes of one bucket of one band, and which of them are connected."""
    hashes = table["hash"].to_numpy()
    forest = Forest(len(hashes))
    for i, j in close_in_band(hashes, table["mask"][0].as_py(), bits):
        forest.link(i, j)
    labels = forest.labels()
    linked = np.flatnonzero(labels != np.arange(len(labels)))
    return pa.table({"one": hashes[labels[linked]], "other": hashes[linked]})


def _compare_batch(table: pa.Table, bits: int, distance: float) -> pa.Table:
    """Work of a task: some pictures with their thumbnails."""
    pictures = table["picture"].to_numpy()
    column = table["thumb"].combine_chunks()
    data = np.frombuffer(column.buffers()[1], dtype=np.uint8)[column.offset * THUMB_BYTES :]
    thumbs = data[: len(pictures) * THUMB_BYTES].reshape(-1, 16, 16, 3)
    plain, mirrored = table["plain"].to_numpy(), table["mirrored"].to_numpy()
    labels = near_labels(plain, mirrored, thumbs.__getitem__, bits, distance)
    linked = labels != np.arange(len(labels))
    return pa.table({"picture": pictures[linked], "first": pictures[labels[linked]]})


def _buckets(hashes: Hashes, bits: int) -> Iterator[pa.Table]:
    """The hashes by bucket of every band. Equal bands are in one bucket; a bucket is no key, but many."""
    count = max(1, len(hashes) // _BUCKET)
    for mask in bands(bits):
        mixed = (hashes & np.uint64(mask)) * np.uint64(0x9E3779B97F4A7C15)  # Knuth 1973, 6.4: multiplicative hashing
        bucket = ((mixed >> np.uint64(40)) % np.uint64(count)).astype(np.int32)
        order = np.argsort(bucket, kind="stable")
        for rows in np.split(order, np.cumsum(np.bincount(bucket, minlength=count))[:-1]):
            if len(rows) > 1:
                yield pa.table({"hash": hashes[rows], "mask": np.full(len(rows), mask, dtype=np.uint64)})


def _batches(group: Ints, plain: Hashes, mirrored: Hashes, thumbs: Callable[[Ints], Thumbs]) -> Iterator[pa.Table]:
    """Pictures whose group has two members or more, whole groups together, the pictures of a batch in order."""
    several = np.flatnonzero(np.bincount(group, minlength=1)[group] > 1)
    several = several[np.argsort(group[several], kind="stable")]
    ends = np.flatnonzero(np.diff(group[several], append=-1)) + 1
    start = 0
    while start < len(several):
        fitting = max(np.searchsorted(ends, start + _BATCH, "right") - 1, np.searchsorted(ends, start, "right"))
        stop = int(ends[fitting])  # a group larger than a batch is a batch of its own
        pictures = np.sort(several[start:stop])
        data = np.ascontiguousarray(thumbs(pictures)).reshape(-1)
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(THUMB_BYTES), len(pictures), [None, pa.py_buffer(data)])
        yield pa.table({"picture": pictures, "plain": plain[pictures], "mirrored": mirrored[pictures], "thumb": column})
        start = stop


def _distinct(numbers: Ints) -> Ints:
    """The numbers in order, each once; unlike ``np.unique`` by sorting, which is faster for millions of them."""
    numbers = np.sort(numbers)
    return numbers[np.flatnonzero(np.diff(numbers, prepend=-1))]


def _blocks(counts: Ints) -> Iterator[slice]:
    """Slices of the items whose counts sum to a bounded number, or of one item alone."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, "right")))
        yield slice(start, stop)
        start = stop


def _ranges(starts: Any, lengths: Any) -> Ints:
    """The numbers start, start+1, ... of every range, one after the other."""
    lengths = np.asarray(lengths, dtype=np.int64)
    offsets = np.repeat(np.cumsum(lengths) - lengths, lengths)
    result: Ints = (
        np.arange(int(lengths.sum()), dtype=np.int64) - offsets + np.repeat(np.asarray(starts, dtype=np.int64), lengths)
    )
    return result
