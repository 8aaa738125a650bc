"""The files of a dataset, written from a decision in pieces of bounded size; equal decisions give equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts.errors import ArtifactError
from components.contracts.records import DROPPED_SCHEMA, DUPLICATES_SCHEMA, SAMPLE_SCHEMA
from components.data.annotations import Annotations
from components.data.deciding import TIERS, Captions, Decision, conflicting
from components.runtime.progress import Progress

PART_ROWS = 20_000
_GROUP_ROWS = 2_000  # rows of a parquet row group, fixed so that equal rows give equal bytes
_CHUNK = 20_000  # rows of the other tables that are Python objects at once

Ints = npt.NDArray[np.int64]


class Rows:
    """The columns of the dataset but the pixels, beside ``at``: the positions of its rows among the scores."""

    def __init__(
        self, at: Ints, captions: Sequence[str], clusters: Sequence[str], splits: Sequence[str], tokens: pa.ListArray
    ) -> None:
        self.at = at
        self.captions = pa.array(captions, pa.large_string())
        self.clusters, self.splits = pa.array(clusters, pa.string()), pa.array(splits, pa.string())
        self.tokens = tokens

    def only(self, mask: npt.NDArray[np.bool_]) -> Rows:
        """The rows where ``mask`` is true."""
        fewer = object.__new__(Rows)
        fewer.at = self.at[mask]
        for name in ("captions", "clusters", "splits", "tokens"):
            setattr(fewer, name, getattr(self, name).filter(pa.array(mask)))
        return fewer


def write_parts(rows: Rows, decision: Decision, alternatives: Sequence[list[str]] | None, folder: Path) -> None:
    """``data/part-00000.parquet`` and so on below ``folder``, ``SAMPLE_SCHEMA``; one row group is in memory at a time.

    Args:
        alternatives: of every row, None where the recipe does not ask for them.

    Raises:
        ArtifactError: the pixels of a row are not as many as its bucket says.
    """
    shutil.rmtree(folder / "data", ignore_errors=True)  # of a killed run
    (folder / "data").mkdir(parents=True)
    progress = Progress("prepare", len(rows.at), "rows written")
    pixels = decision.scores.pixels(rows.at)
    buckets = decision.scores.texts("bucket")
    for number, first in enumerate(range(0, len(rows.at), PART_ROWS)):
        last = min(first + PART_ROWS, len(rows.at))
        path = folder / "data" / f"part-{number:05d}.parquet"
        with pq.ParquetWriter(path, SAMPLE_SCHEMA, compression="zstd") as writer:
            for start in range(first, last, _GROUP_ROWS):
                stop = min(start + _GROUP_ROWS, last)
                writer.write_table(_group(rows, decision, buckets, alternatives, pixels, slice(start, stop)))
                progress.update(stop)
    progress.close()


def _group(
    rows: Rows, decision: Decision, buckets: pa.LargeStringArray, alternatives: Sequence[list[str]] | None,
    pixels: Iterator[bytes | None], where: slice,
) -> pa.Table:  # fmt: skip
    scores, at = decision.scores, rows.at[where]
    places, size = pa.array(at), slice(where.start, where.stop)
    names = buckets.take(places).to_pylist()
    sides = [tuple(map(int, name.split("x"))) for name in names]
    cut = list(islice(pixels, len(at)))
    for i, (width, height), data in zip(at, sides, cut, strict=True):
        if data is None or len(data) != width * height * 3:
            raise ArtifactError(
                f"The scores of {scores.urls[int(i)].as_py()} hold {len(data or b'')} bytes of pixels",
                expected=f"{width * height * 3} for {width}x{height}",
                remedy="delete the scores artifacts in the store and run the same command again",
            )
    columns: dict[str, Any] = {
        "id": scores.id_texts(at),
        "url": scores.urls.take(places).cast(pa.string()),
        "caption": rows.captions[size].cast(pa.string()),
        "alternatives": pa.nulls(len(at), SAMPLE_SCHEMA.field("alternatives").type)
        if alternatives is None
        else pa.array(alternatives[size], SAMPLE_SCHEMA.field("alternatives").type),
        "sha256": scores.sha256.take(places).cast(pa.string()),
        "tokens": rows.tokens[size],
        "pixels": pa.array(cut, pa.binary()),
        "height": [height for _, height in sides],
        "width": [width for width, _ in sides],
        "bucket": names,
        "cluster": rows.clusters[size],
        "split": rows.splits[size],
        "source": pa.array(scores.sources[at]),
    }
    return pa.Table.from_pydict(columns, schema=SAMPLE_SCHEMA)


def write_dropped(decision: Decision, captions: Captions, path: Path) -> None:
    """``DROPPED_SCHEMA``: every sample that is not a row, in the order of the collections."""
    scores, at = decision.scores, np.flatnonzero(decision.reasons)
    with pq.ParquetWriter(path, DROPPED_SCHEMA, compression="zstd") as writer:
        for start in range(0, max(1, len(at)), _CHUNK):
            some = at[start : start + _CHUNK]
            why = decision.explained(some)
            columns = {
                "url": scores.urls.take(pa.array(some)).cast(pa.string()),
                "caption": captions.of(some),
                "sha256": scores.sha256.take(pa.array(some)).cast(pa.string()),
                "reason": [str(reason) for reason, _ in why],
                "detail": [detail for _, detail in why],
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=DROPPED_SCHEMA))


def write_duplicates(decision: Decision, captions: Captions, path: Path) -> dict[str, int]:
    """``DUPLICATES_SCHEMA``: the members of every cluster of two or more, cluster by cluster, the first member first.

    Returns:
        Counts: clusters, members, conflicts.
    """
    found = decision.duplicates
    _, cluster, sizes = np.unique(found.first, return_inverse=True, return_counts=True)
    members = np.flatnonzero(sizes[cluster] > 1)
    members = members[np.argsort(cluster[members], kind="stable")]
    conflicts = 0
    with pq.ParquetWriter(path, DUPLICATES_SCHEMA, compression="zstd") as writer:
        for start in range(0, max(1, len(members)), _CHUNK):
            some = members[start : start + _CHUNK]
            at, scores = decision.at[some], decision.scores
            said = captions.of(at)
            conflict = conflicting(said, captions.of(found.survivor[some]))
            conflicts += int(conflict.sum())
            columns = {
                "cluster": decision.clusters(at),
                "id": scores.id_texts(at),
                "url": scores.urls.take(pa.array(at)).cast(pa.string()),
                "caption": said,
                "sha256": scores.sha256.take(pa.array(at)).cast(pa.string()),
                "tier": [TIERS[tier] or None for tier in found.tier[some]],
                "survives": found.tier[some] == 0,
                "conflict": conflict,
            }
            writer.write_table(pa.Table.from_pydict(columns, schema=DUPLICATES_SCHEMA))
    return {"clusters": int((sizes > 1).sum()), "members": len(members), "conflicts": conflicts}


def alternatives_of(
    rows: Rows, decision: Decision, captions: Captions, annotations: Annotations | None = None
) -> list[list[str]]:
    """For every row the further captions that its source gave, and those of the copies that were dropped for it:
    sorted, each once, without the row's own."""
    found: list[list[str]] = annotations.alternatives(rows.at) if annotations else [[] for _ in rows.at]
    dropped = np.flatnonzero(decision.duplicates.tier > 0)
    survivors = decision.duplicates.survivor[dropped]
    place = np.minimum(np.searchsorted(rows.at, survivors), len(rows.at) - 1)
    here = rows.at[place] == survivors  # a survivor that was set aside is no row
    for start in range(0, int(here.sum()), _CHUNK):
        some = slice(start, start + _CHUNK)
        said = captions.of(decision.at[dropped[here][some]])
        for i, caption in zip(place[here][some], said, strict=True):
            found[int(i)].append(caption)
    return [sorted({*said} - {rows.captions[i].as_py()}) if said else said for i, said in enumerate(found)]


def lengths(texts: pa.Array) -> Any:
    """Characters of every text, NaN where there is none."""
    return pc.utf8_length(texts).to_numpy(zero_copy_only=False)
