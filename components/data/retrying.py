"""``atelier collect --retry transient``: ask again for the rows of a finished collection that may come now.

Asked for again are rows that ended without an answer in time, without a connection, with a status that servers
use for troubles that pass, or because robots.txt itself could not be had. All other rows stay byte for byte. What
comes is fetched beside the collection first, shard by shard, so that a killed run goes on; then the collection
is revised in one step: it keeps its identity and gets a new digest.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.records import FETCHES_SCHEMA, LEDGER_SCHEMA, TRANSIENT, CollectReason
from components.data.collecting import summarised
from components.data.origins import RETRIED_STATUSES
from components.data.shard_tasks import fetch_shards
from components.data.shards import FETCHES, parquet_bytes, read_parquet, read_tar, tar_chunks
from components.data.takedown import not_while_taking_down
from components.data.wanted import Wanted
from components.runtime.progress import say
from components.runtime.revision import exclusive
from components.runtime.stage import Context
from components.runtime.storage import Artifact

_FOLDER = "_retry"  # in the store: what has come so far


def transient_rows(ledger: pa.Table, fetches: pa.Table) -> npt.NDArray[np.int64]:
    """Rows of a ledger that are worth asking for again, ascending; ``fetches`` runs beside it."""
    reason, status = ledger["reason"], ledger["http_status"]
    passing = pc.is_in(reason, pa.array(sorted(TRANSIENT), pa.string()))
    lasting = pc.and_(
        pc.equal(reason, str(CollectReason.HTTP_ERROR)),
        pc.invert(pc.is_in(status, pa.array(sorted(RETRIED_STATUSES), pa.int32()))),
    )
    closed = pc.and_(pc.equal(reason, str(CollectReason.ROBOTS_DISALLOWED)), pc.equal(fetches["robots"], "closed"))
    asked = pc.or_(pc.and_not(passing, pc.fill_null(lasting, False)), pc.fill_null(closed, False))
    return np.flatnonzero(pc.fill_null(asked, False).to_numpy()).astype(np.int64)


def ask_again(ctx: Context, collection: Artifact, wanted: Wanted) -> Artifact:
    """The collection with what came of its transient failures; itself where nothing changed.

    Raises:
        RuntimeUnavailable: another process is at the same.
        StoreFullError: no room is left; the collection is as it was.
    """
    ledger = read_parquet(f"{collection.url}/ledger.parquet", LEDGER_SCHEMA)
    fetches = read_parquet(f"{collection.url}/{FETCHES}.parquet", FETCHES_SCHEMA)
    asked = transient_rows(ledger, fetches)
    if not len(asked):
        say(f"collect: no row failed for a transient reason ({collection.short})")
        return collection
    size = ctx.recipe.collect.shard_size
    rows = {f"{n:05d}": [int(r) for r in asked[asked // size == n]] for n in np.unique(asked // size)}
    base = f"{ctx.store.url}/{_FOLDER}/{collection.manifest.identity[:16]}"
    folder = f"{base}/{collection.digest[:16]}"
    say(f"collect: asking again for {len(asked)} of {ledger.num_rows} rows")
    with exclusive(base, wait_s=0), ctx.timed("collect"), tempfile.TemporaryDirectory(prefix="atelier-retry-") as temp:
        not_while_taking_down(ctx.store.url)
        _keep_only(base, folder)
        fetch_shards(ctx, wanted, folder, rows, Path(temp) / "progress")
        new = pa.concat_tables([read_parquet(f"{folder}/shards/{name}.parquet", LEDGER_SCHEMA) for name in rows])
        at = np.arange(ledger.num_rows)
        at[asked] = ledger.num_rows + np.arange(len(asked))
        ledger_now = pa.concat_tables([ledger, new]).take(at)
        came = int(pc.sum(pc.equal(new["status"], "success")).as_py())
        revised = collection
        if not ledger_now.equals(ledger):
            noted = [read_parquet(f"{folder}/{FETCHES}/{name}.parquet", FETCHES_SCHEMA) for name in rows]
            small = {
                "ledger.parquet": parquet_bytes(ledger_now),
                f"{FETCHES}.parquet": parquet_bytes(pa.concat_tables([fetches, *noted]).take(at)),
            }
            for name in rows:
                part = ledger_now.slice(int(name) * size, size)
                small[f"shards/{name}.parquet"] = parquet_bytes(part.combine_chunks())
            with_new = [name for name in rows if _any_came(new, rows[name])]
            summary = summarised(ledger_now)
            revised = ctx.store.revise(
                collection,
                _Files(small, with_new, collection.url, folder, Path(temp)),
                counts=summary.counts,
                dropped=summary.dropped,
                evidence=collection.manifest.evidence | summary.evidence,
                note={"by": "collect --retry transient", "asked": len(asked), "came": came},
            )
        _keep_only(base, None)
    say(f"collect: {came} of {len(asked)} came ({revised.short})")
    return revised


def _any_came(new: pa.Table, rows: list[int]) -> bool:
    return bool(pc.any(pc.and_(pc.is_in(new["row"], pa.array(rows)), pc.equal(new["status"], "success"))).as_py())


class _Files(Mapping[str, bytes | Path]):
    """The files of the revision; a shard's tar is made when it is asked for, and only one is there at a time."""

    def __init__(self, small: dict[str, bytes], tars: list[str], old: str, new: str, temp: Path) -> None:
        self._small, self._tars, self._old, self._new, self._temp = small, tars, old, new, temp

    def __len__(self) -> int:
        return len(self._small) + len(self._tars)

    def __iter__(self) -> Iterator[str]:
        yield from self._small
        yield from (f"shards/{name}.tar" for name in self._tars)

    def __getitem__(self, name: str) -> bytes | Path:
        if name in self._small:
            return self._small[name]
        paths = {}
        for role, url in (("old", self._old), ("new", self._new)):
            fs, path = fsspec.core.url_to_fs(f"{url}/{name}")
            fs.get_file(path, str(self._temp / role))
            paths[role] = self._temp / role
        both = heapq.merge(read_tar(paths["old"]), read_tar(paths["new"]), key=lambda sample: sample.key)
        with (self._temp / "merged.tar").open("wb") as file:
            file.writelines(tar_chunks(both))
        return self._temp / "merged.tar"


def _keep_only(base: str, folder: str | None) -> None:
    """Remove what earlier runs left below ``base``, all but ``folder``."""
    fs, path = fsspec.core.url_to_fs(base)
    kept = fsspec.core.url_to_fs(folder)[1] if folder is not None else None
    fs.invalidate_cache(path)
    if kept is None:
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    for found in fs.ls(path, detail=False) if fs.exists(path) else []:
        if str(found).rstrip("/") != kept.rstrip("/"):
            fs.rm(found, recursive=True)
