"""Shards fetched in tasks of Ray Data, one shard a task; what is whole already is not fetched again."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.errors import RuntimeUnavailable
from components.contracts.recipe import Collect, Run
from components.contracts.records import LEDGER_SCHEMA
from components.data.shards import FETCHES, accept_shard, is_whole, read_parquet, write_shard
from components.data.takedown import Blocklist
from components.data.wanted import Wanted
from components.runtime.progress import Progress
from components.runtime.stage import Context
from components.runtime.storage import write_bytes

if TYPE_CHECKING:
    from components.data.engine import Source

_KEEP_S = 3600.0  # robots.txt is asked for again after an hour; RFC 9309 2.4 allows a day


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
        this = uuid.uuid4().hex
        write_bytes(f"{folder}/{FETCHES}/run", this.encode())
        common = {
            "allow_hosts": list(wanted.allow_hosts),
            "files": wanted.files,
            "limits": ctx.recipe.collect.model_dump_json(),
            "tasks": min(ctx.recipe.run.collect_tasks, len(missing)),
            "threads": ctx.recipe.run.collect_threads,
            "folder": folder,
            "store": ctx.store.url,
            "reports": str(reports),
            "run": this,
        }
        total, left = (sum(len(rows[name]) for name in names) for names in (rows, missing))
        under_way = _Reports(reports, total - left)
        pieces = (common | _piece(name, rows[name], wanted.urls) for name in missing)
        _run(ctx.recipe.run, pieces, total, under_way)


def _run(run: Run, pieces: Iterable[dict[str, Any]], total: int, under_way: _Reports) -> None:
    from components.runtime.cluster import ray_session
    from components.runtime.pieces import run_pieces

    progress = Progress("collect", total, "URLs", initial=under_way.rows(), every_s=5.0)
    with ray_session(run), ThreadPoolExecutor(1) as disk:
        accepted = []
        results = run_pieces(pieces, _fetch_piece, run, run.collect_tasks, lambda: progress.update(under_way.rows()))
        for result in results:
            under_way.finished(result["name"], result["rows"])
            accepted.append(disk.submit(accept_shard, result["folder"], result["name"]))  # while the workers fetch on
        for future in accepted:
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
        _still_wanted(piece)
        write_shard(piece["folder"], piece["name"], shard.samples(), shard.ledger(), shard.fetches())
    return {"name": piece["name"], "rows": len(piece["rows"]), "folder": piece["folder"]}


def _still_wanted(piece: dict[str, Any]) -> None:
    """A worker that was cut off from its run must not write over what a later run has made."""
    fs, path = fsspec.core.url_to_fs(f"{piece['folder']}/{FETCHES}/run")
    fs.invalidate_cache()
    now = fs.cat_file(path).decode() if fs.exists(path) else "none"
    if now != piece["run"]:
        raise RuntimeUnavailable(f"Shard {piece['name']} was fetched for run {piece['run']}, and run {now} took over")


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
            remove_shard(folder, name)
            whole = False
        if whole and len(blocked) and _holds_blocked(f"{folder}/shards/{name}.parquet", blocked):
            remove_shard(folder, name)
            whole = False
        if not whole:
            missing.append(name)
    return missing


def _holds_blocked(url: str, blocked: Blocklist) -> bool:
    came = read_parquet(url, LEDGER_SCHEMA).filter(pc.field("status") == "success")
    pairs = zip(came["url"].to_pylist(), came["sha256"].to_pylist(), strict=True)
    return any(blocked.blocks(url=url, sha256=sha256) for url, sha256 in pairs)


def remove_shard(folder: str, name: str) -> None:
    """Take all files of a shard out of the artifact being made; those that are not there are no error."""
    fs, path = fsspec.core.url_to_fs(folder)
    files = f"shards/{name}.parquet", f"shards/{name}.tar", f"{FETCHES}/{name}.parquet", f"{FETCHES}/{name}.ledger"
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{path}/{file}")
