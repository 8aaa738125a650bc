"""Collect: from a list of URLs and captions to shards and a ledger with one row for every row of the list.

Files of a ``collection``: ``shards/00000.tar`` (webdataset: ``key.jpg|png|…``, ``key.txt``, ``key.json``),
``shards/00000.parquet`` (the ledger rows of that shard), ``ledger.parquet`` (all of them, in order) and
``circumstance/fetches.parquet`` (when and from where each row came; not part of the digest).
A shard's parquet is written last, by the process that gave the work out: a run that was killed finds it and asks
the web for the other shards only, and what a worker writes after that process's death does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.errors import DataError
from components.contracts.manifest import identity_of
from components.contracts.records import FETCHES_SCHEMA, LEDGER_SCHEMA, CollectReason
from components.data.annotations import FILE as ANNOTATIONS
from components.data.annotations import annotations_of
from components.data.shard_tasks import fetch_shards, remove_shard
from components.data.shards import FETCHES, parquet_bytes, read_parquet
from components.data.takedown import Blocklist, not_while_taking_down
from components.data.wanted import Wanted
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes

_TAKEN_DOWN = str(CollectReason.TAKEN_DOWN)


def collect(
    ctx: Context, urls: pa.Table, allow_hosts: tuple[str, ...] = (), files: str | None = None, retry: bool = False
) -> Artifact:
    """The collection of this list under the recipe's manners.

    Args:
        ctx: recipe, store and home.
        urls: columns ``url`` and ``caption``, as :func:`components.data.lists.read_list` gives them.
        allow_hosts: ``host:port`` pairs that may be of a private address, beside those of the recipe.
        files: root of the files that the URLs name, where they are files and not on the web.
        retry: ask again for the rows of a finished collection that failed for a transient reason.

    Raises:
        DataError: not one URL became a sample; the message has the most frequent reasons.
        RecipeError: the web would be asked without a contact address.
    """
    from components.data.fetching import require_contact
    from components.data.retrying import ask_again

    limits = ctx.recipe.collect
    wanted = Wanted(urls, tuple(sorted({*limits.allow_hosts, *allow_hosts})), files)
    config = wanted.config(limits)
    known = ctx.store.find("collection", identity_of("collection", {}, config))
    if files is None and (known is None or retry):
        require_contact(limits.model_copy(update={"allow_hosts": wanted.allow_hosts}), urls["url"].to_pylist())
    if retry and known is not None:
        known.verify()
        return ask_again(ctx, known, wanted)
    return run_stage(ctx, "collection", {}, config, lambda draft: _build(ctx, wanted, draft), label="collect")


def _build(ctx: Context, wanted: Wanted, draft: Draft) -> Outcome:
    not_while_taking_down(ctx.store.url)
    size, total = ctx.recipe.collect.shard_size, wanted.urls.num_rows
    rows = {f"{n:05d}": range(n * size, min((n + 1) * size, total)) for n in range(-(-total // size))}
    fetch_shards(ctx, wanted, draft.url, rows, draft.state / "progress")
    ledger = pa.concat_tables([read_parquet(f"{draft.url}/shards/{name}.parquet", LEDGER_SCHEMA) for name in rows])
    assert np.array_equal(ledger["row"].to_numpy(), np.arange(total)), "the ledger has one row for every input row"
    summary = summarised(ledger)
    if summary.counts["success"] == 0:
        for name in rows:  # or the same command would find these shards and not ask again
            remove_shard(draft.url, name)
        raise DataError(
            f"Nothing was collected: {_failures(ledger, summary)}",
            expected="at least one picture",
            remedy="check that the web server runs and that collect.allow_hosts names it if its address is private"
            if wanted.files is None
            else f"check the pictures below {wanted.files}",
        )
    write_bytes(f"{draft.url}/ledger.parquet", parquet_bytes(ledger))
    hidden = pc.equal(ledger["reason"], _TAKEN_DOWN).fill_null(False)
    if (annotations := annotations_of(wanted.urls, hidden)) is not None:
        write_bytes(f"{draft.url}/{ANNOTATIONS}", parquet_bytes(annotations))
    _gather_fetches(draft.url, rows)
    summary.evidence["takedown"] = Blocklist.of(ctx.store.url).evidence()
    summary.circumstance = {"tasks": ctx.recipe.run.collect_tasks, "threads": ctx.recipe.run.collect_threads}
    return summary


def summarised(ledger: pa.Table) -> Outcome:
    """Counts of a whole ledger, for the manifest."""
    dropped = {str(c["values"]): int(c["counts"]) for c in pc.value_counts(ledger["reason"]).to_pylist() if c["values"]}
    failed = sum(dropped.values())
    return Outcome(
        counts={"urls": ledger.num_rows, "success": ledger.num_rows - failed, "failed": failed},
        dropped=dict(sorted(dropped.items())),
        evidence={"bytes_received": int(pc.sum(ledger["bytes"]).as_py() or 0)},
    )


def _failures(ledger: pa.Table, summary: Outcome) -> str:
    frequent = sorted(summary.dropped.items(), key=lambda item: -item[1])[:4]
    example = pc.drop_null(ledger["detail"])[0].as_py()
    top = ", ".join(f"{count} {reason}" for reason, count in frequent)
    return f"all {ledger.num_rows} URLs failed ({top}; for example: {example})"


def _gather_fetches(folder: str, rows: Mapping[str, Sequence[int]]) -> None:
    """Put what the shards noted into one file. Killed in the middle, it finds part of them there already."""
    try:
        before = read_parquet(f"{folder}/{FETCHES}.parquet", FETCHES_SCHEMA)
    except FileNotFoundError:
        before = FETCHES_SCHEMA.empty_table()
    parts = []
    for name, of_shard in rows.items():
        try:
            parts.append(read_parquet(f"{folder}/{FETCHES}/{name}.parquet", FETCHES_SCHEMA))
        except FileNotFoundError:
            parts.append(before.slice(of_shard[0], len(of_shard)))
    write_bytes(f"{folder}/{FETCHES}.parquet", parquet_bytes(pa.concat_tables(parts)))
    fs, path = fsspec.core.url_to_fs(folder)
    if fs.exists(f"{path}/{FETCHES}"):
        fs.rm(f"{path}/{FETCHES}", recursive=True)
