"""Collect: from a list of URLs and captions to shards and a ledger with one row for every row of the list.

Files of a ``collection``: ``shards/00000.tar`` (webdataset: ``key.jpg|png|…``, ``key.txt``, ``key.json``),
``shards/00000.parquet`` (the ledger rows of that shard), ``ledger.parquet`` (all of them, in order) and
``circumstance/fetches.parquet`` (when and from where each row came; not part of the digest).
A shard's parquet is written last: a run that was killed finds it and asks the web for the other shards only.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.errors import DataError
from components.contracts.manifest import CIRCUMSTANCE, identity_of
from components.contracts.recipe import Collect, Run
from components.contracts.records import FETCHES_SCHEMA, LEDGER_SCHEMA, CollectReason
from components.data.annotations import FILE as ANNOTATIONS
from components.data.annotations import annotations_digest, annotations_of
from components.data.shards import is_whole, parquet_bytes, read_parquet, write_shard
from components.data.takedown import Blocklist, not_while_taking_down
from components.runtime.progress import Progress
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, sync_file, write_bytes

if TYPE_CHECKING:
    from components.data.engine import Source

FETCHES = f"{CIRCUMSTANCE}fetches"
_SOURCE_FIELDS = {
    "urls", "files", "layout", "crop", "world", "parquet", "parquet_port", "url_column", "caption_column", "allow_hosts"
}  # fmt: skip
# how hard and under which name a site is asked changes nothing of what it answers, as far as anyone can say
_CIRCUMSTANCE_FIELDS = {"contact", "per_host", "crawl_delay_s", "min_collected"}

_TAKEN_DOWN = str(CollectReason.TAKEN_DOWN)
_KEEP_S = 3600.0  # robots.txt is asked for again after an hour; RFC 9309 2.4 allows a day


@dataclass(frozen=True)
class Wanted:
    """A list, and how its rows may be had.

    Args:
        urls: columns ``url`` and ``caption``, as :func:`components.data.lists.read_list` gives them, and those of
            :mod:`components.data.annotations`, where the source has them.
        allow_hosts: ``host:port`` pairs that may be of a private address.
        files: root of the files that the URLs name, where they are files.
    """

    urls: pa.Table
    allow_hosts: tuple[str, ...]
    files: str | None

    def config(self, limits: Collect) -> dict[str, Any]:
        """What decides the identity of the collection of this list."""
        left_out = _SOURCE_FIELDS | _CIRCUMSTANCE_FIELDS
        if limits.jpeg_subsampling == "4:4:4":  # as every collection was made before there was a choice
            left_out = left_out | {"jpeg_subsampling"}
        manners = {k: v for k, v in limits.identity().items() if k not in left_out}
        return {**manners, "allow_hosts": list(self.allow_hosts), "list": list_digest(self.urls)}


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


def list_digest(urls: pa.Table) -> str:
    """SHA-256 (hex) of the list's URLs and captions in order, whatever file they came from; of files' bytes too."""
    sha = hashlib.sha256((urls.schema.metadata or {}).get(b"content", b""))  # see sources.Source
    for url, caption in zip(urls["url"].to_pylist(), urls["caption"].to_pylist(), strict=True):
        for text in (url, caption):
            data = b"" if text is None else text.encode()
            sha.update(f"{-1 if text is None else len(data)}:".encode() + data)
    sha.update(annotations_digest(urls))
    return sha.hexdigest()


def _build(ctx: Context, wanted: Wanted, draft: Draft) -> Outcome:
    not_while_taking_down(ctx.store.url)
    size, total = ctx.recipe.collect.shard_size, wanted.urls.num_rows
    rows = {f"{n:05d}": range(n * size, min((n + 1) * size, total)) for n in range(-(-total // size))}
    fetch_shards(ctx, wanted, draft.url, rows, draft.state / "progress")
    for name in rows:  # those of a run that was killed, too
        sync_file(f"{draft.url}/shards/{name}.tar")
    ledger = pa.concat_tables([read_parquet(f"{draft.url}/shards/{name}.parquet", LEDGER_SCHEMA) for name in rows])
    assert np.array_equal(ledger["row"].to_numpy(), np.arange(total)), "the ledger has one row for every input row"
    summary = summarised(ledger)
    if summary.counts["success"] == 0:
        for name in rows:  # or the same command would find these shards and not ask again
            _remove_shard(draft.url, name)
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


def fetch_shards(ctx: Context, wanted: Wanted, folder: str, rows: Mapping[str, Sequence[int]], reports: Path) -> None:
    """Fetch the rows of every shard that is not in ``folder`` yet, one shard a task.

    Args:
        folder: fsspec URL or path that :func:`~components.data.shards.write_shard` writes in.
        rows: by shard, ascending and within a stretch of ``shard_size`` rows.
        reports: local folder in which workers of this machine say how far they are.

    Raises:
        StoreFullError: no room is left.
    """
    while missing := _missing(folder, rows, Blocklist.of(ctx.store.url)):  # again where a takedown came meanwhile
        ctx.start_ray()
        common = {
            "allow_hosts": list(wanted.allow_hosts),
            "files": wanted.files,
            "limits": ctx.recipe.collect.model_dump_json(),
            "tasks": min(ctx.recipe.run.collect_tasks, len(missing)),
            "threads": ctx.recipe.run.collect_threads,
            "folder": folder,
            "store": ctx.store.url,
            "reports": str(reports),
            "run": uuid.uuid4().hex,
        }
        total, left = (sum(len(rows[name]) for name in names) for names in (rows, missing))
        under_way = _Reports(reports, total - left)
        pieces = (common | _piece(name, rows[name], wanted.urls) for name in missing)
        _run(ctx.recipe.run, pieces, total, under_way)


def _run(run: Run, pieces: Iterable[dict[str, Any]], total: int, under_way: _Reports) -> None:
    from components.data.blocks import run_pieces
    from components.runtime.cluster import ray_session

    progress = Progress("collect", total, "URLs", initial=under_way.rows(), every_s=5.0)
    with ray_session(run), ThreadPoolExecutor(1) as disk:
        synced = []
        results = run_pieces(pieces, _fetch_piece, run, run.collect_tasks, lambda: progress.update(under_way.rows()))
        for result in results:
            under_way.finished(result["name"], result["rows"])
            synced.append(disk.submit(sync_file, result["tar"]))  # waited for here, while the workers fetch on
        for future in synced:
            future.result()
    progress.update(total)
    progress.close()


def _piece(name: str, rows: Sequence[int], urls: pa.Table) -> dict[str, Any]:
    first = rows[0]
    part = urls.select(["url", "caption"]).slice(first, rows[-1] - first + 1).take([row - first for row in rows])
    columns = {"urls": part["url"].to_pylist(), "captions": part["caption"].to_pylist()}
    return {"name": name, "rows": list(rows), **columns}


def _fetch_piece(piece: dict[str, Any]) -> dict[str, Any]:
    """One shard, in a worker of Ray Data."""
    from components.data.engine import Shard
    from components.runtime.cluster import apply_quiet_environment

    apply_quiet_environment()
    reports = Path(piece["reports"])  # on other machines this folder does not exist: then nothing is reported

    def report(rows: int) -> None:
        with contextlib.suppress(OSError):
            (reports / piece["name"]).write_text(str(rows))

    limits = Collect.model_validate_json(piece["limits"])
    blocked = Blocklist.of(piece["store"])
    shard = Shard(piece["name"], piece["rows"], piece["urls"], piece["captions"], limits, blocked, report)
    with contextlib.closing(shard):
        shard.fetch(_source(limits, piece), piece["threads"])
        write_shard(piece["folder"], piece["name"], shard.samples(), shard.ledger(), shard.fetches())
    tar = f"{piece['folder']}/shards/{piece['name']}.tar"
    return {"name": piece["name"], "rows": len(piece["rows"]), "tar": tar}


_open_source: list[tuple[str, float, Source]] = []  # of this worker: its run, when it was opened (monotonic), itself


def _source(limits: Collect, piece: dict[str, Any]) -> Source:
    """What this worker fetches from. It is kept from shard to shard of a run, and with it connections, robots.txt
    and what is known of dead hosts."""
    from components.data.fetching import Fetcher
    from components.data.guard import Guard
    from components.data.reading import FileReader

    now = time.monotonic()
    while _open_source and (_open_source[0][0] != piece["run"] or now - _open_source[0][1] > _KEEP_S):
        _open_source.pop()[2].close()
    if not _open_source:
        source: Source = (
            FileReader(limits, piece["files"])
            if piece["files"] is not None
            else Fetcher(limits, Guard(piece["allow_hosts"]), piece["tasks"])
        )
        _open_source.append((piece["run"], now, source))
    return _open_source[0][2]


class _Reports:
    """Rows done, from finished shards and from what the others have reported."""

    def __init__(self, folder: Path, initial: int) -> None:
        self._folder, self._initial, self._done = folder, initial, dict[str, int]()
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():  # of a run that was killed
            file.unlink(missing_ok=True)

    def finished(self, name: str, rows: int) -> None:
        self._done[name] = rows

    def rows(self) -> int:
        done = dict(self._done)
        total = self._initial + sum(done.values())
        for file in self._folder.iterdir():
            if file.name not in done:
                with contextlib.suppress(OSError, ValueError):
                    total += int(file.read_text())
        return total


def _missing(folder: str, rows: Mapping[str, Sequence[int]], blocked: Blocklist) -> list[str]:
    """Shards that are still to be fetched. One that holds what has been taken down since counts as not fetched."""
    fs, path = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache(path)
    try:
        found = {str(p).rpartition("/")[2] for p in cast(list[str], fs.ls(f"{path}/shards", detail=False))}
    except FileNotFoundError:
        return list(rows)
    missing = []
    for name in rows:
        whole = {f"{name}.parquet", f"{name}.tar"} <= found
        if whole and not is_whole(folder, name):
            _remove_shard(folder, name)
            whole = False
        if whole and len(blocked) and _holds_blocked(f"{folder}/shards/{name}.parquet", blocked):
            _remove_shard(folder, name)
            whole = False
        if not whole:
            missing.append(name)
    return missing


def _holds_blocked(url: str, blocked: Blocklist) -> bool:
    came = read_parquet(url, LEDGER_SCHEMA).filter(pc.field("status") == "success")
    pairs = zip(came["url"].to_pylist(), came["sha256"].to_pylist(), strict=True)
    return any(blocked.blocks(url=url, sha256=sha256) for url, sha256 in pairs)


def _remove_shard(folder: str, name: str) -> None:
    fs, path = fsspec.core.url_to_fs(folder)
    for file in (f"shards/{name}.parquet", f"shards/{name}.tar", f"{FETCHES}/{name}.parquet"):
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{path}/{file}")


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
