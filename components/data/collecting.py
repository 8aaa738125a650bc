"""Collect: from a list of URLs and captions to shards and a ledger with one row for every row of the list.

Files of a ``collection``: ``shards/00000.tar`` (webdataset: ``key.jpg|png``, ``key.txt``, ``key.json``),
``shards/00000.parquet`` (the ledger rows of that shard) and ``ledger.parquet`` (all of them, in order).
A shard's parquet is written last: a run that was killed finds it and asks the web for the other shards only.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow as pa

from components.contracts.errors import DataError
from components.contracts.recipe import Collect
from components.contracts.records import LEDGER_SCHEMA
from components.runtime.progress import Progress
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes

_SOURCE_FIELDS = {"urls", "world", "parquet", "parquet_port", "url_column", "caption_column", "allow_hosts"}


def collect(ctx: Context, urls: pa.Table, allow_hosts: tuple[str, ...] = ()) -> Artifact:
    """The collection of this list under the recipe's manners.

    Args:
        ctx: recipe, store and home.
        urls: columns ``url`` and ``caption``, as :func:`components.data.lists.read_list` gives them.
        allow_hosts: ``host:port`` pairs that may be of a private address, beside those of the recipe.

    Raises:
        DataError: not one URL became a sample; the message has the most frequent reasons.
    """
    allowed = tuple(sorted({*ctx.recipe.collect.allow_hosts, *allow_hosts}))
    manners = {k: v for k, v in ctx.recipe.collect.identity().items() if k not in _SOURCE_FIELDS}
    config = {**manners, "allow_hosts": list(allowed), "list": list_digest(urls)}

    def build(draft: Draft) -> Outcome:
        return _build(ctx, urls, allowed, draft)

    return run_stage(ctx, "collection", {}, config, build, label="collect")


def list_digest(urls: pa.Table) -> str:
    """SHA-256 (hex) of the list's URLs and captions in order, whatever file they came from."""
    sha = hashlib.sha256()
    for url, caption in zip(urls["url"].to_pylist(), urls["caption"].to_pylist(), strict=True):
        for text in (url, caption):
            data = b"" if text is None else text.encode()
            sha.update(f"{-1 if text is None else len(data)}:".encode() + data)
    return sha.hexdigest()


def _build(ctx: Context, urls: pa.Table, allowed: tuple[str, ...], draft: Draft) -> Outcome:
    from components.data.blocks import run_pieces
    from components.runtime.cluster import ray_session

    size, run = ctx.recipe.collect.shard_size, ctx.recipe.run
    names = [f"{n:05d}" for n in range(-(-urls.num_rows // size))]
    done = _finished(draft.url, names)
    reports = draft.state / "progress"
    reports.mkdir(exist_ok=True)
    pieces = [
        {
            "name": name,
            "first_row": i * size,
            "urls": [u or "" for u in urls["url"].slice(i * size, size).to_pylist()],
            "captions": urls["caption"].slice(i * size, size).to_pylist(),
            "allow_hosts": list(allowed),
            "limits": ctx.recipe.collect.model_dump_json(),
            "threads": run.collect_threads,
            "url": draft.url,
            "reports": str(reports),
        }
        for i, name in enumerate(names)
        if name not in done
    ]
    finished_rows = urls.num_rows - sum(len(piece["urls"]) for piece in pieces)
    progress = Progress("collect", urls.num_rows, "URLs", initial=finished_rows, every_s=5.0)
    under_way = _Reports(reports, finished_rows)
    if pieces:
        with ray_session(run):
            for result in run_pieces(
                pieces, _fetch_piece, run, run.collect_tasks, lambda: progress.update(under_way.rows())
            ):
                under_way.finished(result["name"], result["rows"])
    progress.update(urls.num_rows)
    progress.close()
    ledger = pa.concat_tables([_read_shard(draft.url, name) for name in names])
    return _finish(ctx, ledger, draft, names)


def _finish(ctx: Context, ledger: pa.Table, draft: Draft, names: list[str]) -> Outcome:
    from components.data.shards import parquet_bytes

    assert ledger["row"].to_pylist() == list(range(ledger.num_rows)), "the ledger has one row for every input row"
    dropped = Counter(reason for reason in ledger["reason"].to_pylist() if reason is not None)
    failed = sum(dropped.values())
    if failed == ledger.num_rows:
        _forget(draft.url, names)  # or the same command would find these shards and not ask again
        top = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common(4))
        example = next(d for d in ledger["detail"].to_pylist() if d)
        raise DataError(
            f"Nothing was collected: all {ledger.num_rows} URLs failed ({top}; for example: {example})",
            expected="at least one picture",
            remedy="check that the web server runs and that collect.allow_hosts names it if its address is private",
        )
    write_bytes(f"{draft.url}/ledger.parquet", parquet_bytes(ledger))
    return Outcome(
        counts={"urls": ledger.num_rows, "success": ledger.num_rows - failed, "failed": failed},
        dropped=dict(sorted(dropped.items())),
        evidence={"bytes_received": int(sum(b or 0 for b in ledger["bytes"].to_pylist()))},
        circumstance={"tasks": ctx.recipe.run.collect_tasks, "threads": ctx.recipe.run.collect_threads},
    )


def _fetch_piece(piece: dict[str, Any]) -> dict[str, Any]:
    """One shard, in a worker of Ray Data."""
    from components.data.engine import Shard
    from components.data.guard import Guard
    from components.runtime.cluster import apply_quiet_environment

    apply_quiet_environment()
    reports = Path(piece["reports"])  # on other machines this folder does not exist: then nothing is reported

    def report(rows: int) -> None:
        with contextlib.suppress(OSError):
            (reports / piece["name"]).write_text(str(rows))

    limits = Collect.model_validate_json(piece["limits"])
    shard = Shard(piece["name"], piece["first_row"], piece["urls"], piece["captions"], limits, report)
    shard.fetch(Guard(piece["allow_hosts"]), piece["threads"], piece["url"])
    return {"name": piece["name"], "rows": len(piece["urls"])}


class _Reports:
    """Rows done, from finished shards and from what the others have reported."""

    def __init__(self, folder: Path, initial: int) -> None:
        self._folder, self._initial, self._done = folder, initial, dict[str, int]()

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


def _finished(url: str, names: list[str]) -> set[str]:
    """Shards that an earlier run of the same draft has finished."""
    fs, path = fsspec.core.url_to_fs(url)
    try:
        found = {str(p).rpartition("/")[2] for p in cast(list[str], fs.ls(f"{path}/shards", detail=False))}
    except FileNotFoundError:
        return set()
    return {name for name in names if {f"{name}.parquet", f"{name}.tar"} <= found}


def _read_shard(url: str, name: str) -> pa.Table:
    import pyarrow.parquet as pq

    with fsspec.open(f"{url}/shards/{name}.parquet", "rb") as file:
        return pq.read_table(file, schema=LEDGER_SCHEMA)


def _forget(url: str, names: list[str]) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    for name in names:
        for ending in ("parquet", "tar"):
            if fs.exists(f"{path}/shards/{name}.{ending}"):
                fs.rm_file(f"{path}/shards/{name}.{ending}")
