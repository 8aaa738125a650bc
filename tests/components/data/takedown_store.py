"""A small store with every kind of artifact in it, made without Ray, for the tests of takedown."""

from __future__ import annotations

import hashlib
import html
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.contracts.manifest import MANIFEST_NAME
from components.contracts.recipe import Recipe
from components.contracts.records import (
    DROPPED_SCHEMA,
    DUPLICATES_SCHEMA,
    FETCHES_SCHEMA,
    LEDGER_SCHEMA,
    SAMPLE_SCHEMA,
)
from components.data.shards import Sample, tar_bytes
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome

SHARD = 4  # rows
GONE = "https://img.example.org/3.png"  # in training, and once more under COPY with another caption
COPY = "https://mirror.test/three.png"
NEAR = "https://other.test/4.png"  # of one cluster with GONE, dropped as its near-duplicate
HELD = "https://img.example.org/5.png"  # held out; its caption is a prompt of the judge
FAILED = "https://img.example.org/6.png"  # never came


def context(home: Path, store: str | None = None) -> Context:
    run = {"root": str(home), "store": store}
    return Context.of(Recipe.model_validate({"name": "gone", "run": run}))


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), (number * 20, 40, 90)).save(out, "PNG")
    return out.getvalue() + f"picture {number}".encode()  # a trace that can be searched for


def sha(number: int) -> str:
    return hashlib.sha256(picture(number)).hexdigest()


#: Rows of the first list: (URL, number of the picture or None where it failed).
FIRST = [("https://a.test/0.png", 0), ("https://a.test/1.png", 1), ("https://a.test/2.png", 2), (GONE, 3), (NEAR, 4),
         (HELD, 5), (FAILED, None), ("https://a.test/7.png", 7), ("https://a.test/8.png", None)]  # fmt: skip
#: Of the second one: the same bytes as picture 3 elsewhere, and another picture.
SECOND = [("https://a.test/9.png", 9), (COPY, 3)]


def caption(url: str) -> str:
    return "a common caption" if "a.test" in url else f"the caption of {url.rpartition('/')[2]}"


def ledger(rows: list[tuple[str, int | None]]) -> pa.Table:
    entries = []
    for row, (url, number) in enumerate(rows):
        entry: dict[str, Any] = {"row": row, "url": url, "caption": caption(url), "attempts": 1, "bytes": 5}
        if number is None:
            entry |= {"status": "failed", "reason": "http_404", "detail": "HTTP status 404", "http_status": 404}
        else:
            entry |= {"status": "success", "sha256": sha(number), "width": 20, "height": 20, "http_status": 200,
                      "opt_out": None, "shard": f"{row // SHARD:05d}", "key": f"{row:09d}"}  # fmt: skip
        entries.append(entry)
    return pa.Table.from_pylist(entries, schema=LEDGER_SCHEMA)


def put(ctx: Context, kind: str, inputs: dict[str, Artifact], files: dict[str, Any], **outcome: Any) -> Artifact:
    draft = ctx.store.draft(kind, inputs, {"n": len(ctx.store.list(kind))})
    for name, content in files.items():
        path = draft.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, path, compression="zstd", row_group_size=2)
        else:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return draft.commit(Outcome(**outcome))


def collection(ctx: Context, rows: list[tuple[str, int | None]]) -> Artifact:
    table = ledger(rows)
    files: dict[str, Any] = {"ledger.parquet": table}
    fetches = [
        {"row": i, "final_url": url, "address": "192.0.2.7", "robots": "none"} for i, (url, _) in enumerate(rows)
    ]
    files["circumstance/fetches.parquet"] = pa.Table.from_pylist(fetches, schema=FETCHES_SCHEMA)
    for start in range(0, len(rows), SHARD):
        part = table.slice(start, SHARD)
        files[f"shards/{start // SHARD:05d}.parquet"] = part
        files[f"shards/{start // SHARD:05d}.tar"] = tar_bytes(samples(part, rows))
    success = sum(number is not None for _, number in rows)
    counts = {"urls": len(rows), "success": success, "failed": len(rows) - success}
    dropped = {"http_404": counts["failed"]} if counts["failed"] else {}
    return put(ctx, "collection", {}, files, counts=counts, dropped=dropped, evidence={"bytes_received": 45})


def samples(part: pa.Table, rows: list[tuple[str, int | None]]) -> Iterator[Sample]:
    for row in part.to_pylist():
        if row["status"] == "success":
            number = rows[row["row"]][1]
            assert number is not None
            meta = {k: row[k] for k in ("key", "row", "url", "caption", "sha256")}
            yield Sample(row["key"], "png", picture(number), meta)


def identity(url: str, number: int) -> str:
    return hashlib.sha256(f"{sha(number)}{caption(url)}".encode()).hexdigest()[:16]


def scores(ctx: Context, of: Artifact, rows: list[tuple[str, int | None]]) -> Artifact:
    files: dict[str, Any] = {}
    for start in range(0, len(rows), SHARD):
        part = [(i, *rows[i]) for i in range(start, min(start + SHARD, len(rows))) if rows[i][1] is not None]
        table = [{"row": i, "url": u, "caption": caption(u), "clean": caption(u), "sha256": sha(n or 0),
                  "id": int(identity(u, n or 0), 16)} for i, u, n in part]  # fmt: skip
        schema = pa.schema([("row", pa.int64()), ("url", pa.string()), ("caption", pa.string()),
                            ("clean", pa.string()), ("sha256", pa.string()), ("id", pa.uint64())])  # fmt: skip
        pixels = [{"row": i, "pixels": f"pixels of {n};".encode()} for i, _, n in part]
        files[f"scores/{start // SHARD:05d}.parquet"] = pa.Table.from_pylist(table, schema=schema)
        files[f"pixels/{start // SHARD:05d}.parquet"] = pa.Table.from_pylist(
            pixels, schema=pa.schema([("row", pa.int64()), ("pixels", pa.binary())])
        )
    return put(ctx, "scores", {"collection": of}, files, counts={"samples": of.manifest.counts["success"]})


def dataset(ctx: Context, collections: list[Artifact]) -> Artifact:
    def row(url: str, number: int, split: str, cluster: str, **more: Any) -> dict[str, Any]:
        return {"id": identity(url, number), "url": url, "caption": caption(url), "sha256": sha(number), "tokens": [1],
                "pixels": f"pixels of {number};".encode(), "height": 1, "width": 1, "bucket": "1x1", "split": split,
                "cluster": cluster, "source": 0, "alternatives": []} | more  # fmt: skip

    cluster = identity(GONE, 3)
    one = [row("https://a.test/0.png", 0, "train", "c0"), row("https://a.test/1.png", 1, "holdout", "c1"),
           row(GONE, 3, "train", cluster, alternatives=[caption(NEAR)])]  # fmt: skip
    two = [row(HELD, 5, "holdout", "c5"), row("https://a.test/7.png", 7, "train", "c7")]
    dropped = [
        {"url": "https://a.test/2.png", "caption": caption("https://a.test/2.png"), "sha256": sha(2),
         "reason": "blurred", "detail": "too blurred"},
        {"url": NEAR, "caption": caption(NEAR), "sha256": sha(4), "reason": "duplicate_near",
         "detail": f"nearly the same picture as {GONE}"},
        {"url": COPY, "caption": caption(COPY), "sha256": sha(3), "reason": "duplicate_exact",
         "detail": f"the same bytes as {GONE}"},
    ]  # fmt: skip
    members = [(GONE, 3, None), (NEAR, 4, "near"), (COPY, 3, "exact")]
    duplicates = [
        {"cluster": cluster, "id": identity(u, n), "url": u, "caption": caption(u), "sha256": sha(n), "tier": tier,
         "survives": tier is None, "conflict": True} for u, n, tier in members
    ]  # fmt: skip
    files = {
        "data/part-00000.parquet": pa.Table.from_pylist(one, schema=SAMPLE_SCHEMA),
        "data/part-00001.parquet": pa.Table.from_pylist(two, schema=SAMPLE_SCHEMA),
        "dropped.parquet": pa.Table.from_pylist(dropped, schema=DROPPED_SCHEMA),
        "duplicates.parquet": pa.Table.from_pylist(duplicates, schema=DUPLICATES_SCHEMA),
        "tokenizer/tokenizer.json": {"vocab": ["a", "common"]},
        "circumstance/docs/a.html": f"<td>{html.escape(GONE)}</td>".encode(),
        "circumstance/docs/b.html": b"<td>nothing</td>",
        "validation.json": {"summary": {"rows": 5}, "examples": [GONE]},
    }
    counts = {"samples": 8, "rows": 5, "train": 3, "holdout": 2}
    reasons = {"blurred": 1, "duplicate_near": 1, "duplicate_exact": 1}
    inputs = {f"collection_{i:03d}": c for i, c in enumerate(collections)}
    return put(ctx, "dataset", inputs, files, counts=counts, dropped=reasons, evidence={"conflicts": [GONE]})


def latents(ctx: Context, of: Artifact) -> Artifact:
    files: dict[str, Any] = {"latents.json": {"scaling": 1.0}}
    for name in ("data/part-00000.parquet", "data/part-00001.parquet"):
        rows = pq.ParquetFile(of.path(name)).read(["id", "split"])
        values = pa.array([b"latents of " + i.encode() for i in rows["id"].to_pylist()], pa.binary())
        files[name] = rows.append_column("mean", values)
    autoencoder = put(ctx, "autoencoder", {"dataset": of}, {"weights": b"1"})
    return put(ctx, "latents", {"dataset": of, "autoencoder": autoencoder}, files, counts={"rows": 5})


def model(ctx: Context, of: Artifact, start: Artifact | None = None) -> Artifact:
    inputs = {"dataset": of} | ({"start": start} if start else {})
    text = put(ctx, "text_encoder", inputs, {"weights": b"2", "tokenizer/tokenizer.json": {"vocab": ["a"]}})
    return put(ctx, "model", {"dataset": of, "text_encoder": text}, {"unet.safetensors": b"3"})


def measured(ctx: Context, of: Artifact, by: Artifact) -> tuple[Artifact, Artifact]:
    prompts = {"known": ["a common caption", caption(HELD)]}
    real = [(GONE, 3, "train"), (HELD, 5, "holdout"), ("https://a.test/7.png", 7, "train")]
    kept = {"id": [identity(u, n) for u, n, _ in real], "split": [s for _, _, s in real], "judge/features": [0.5] * 3}
    told = {"prompts.json": prompts, "protocol.json": {"seed_base": 1}, "kept.parquet": pa.table(kept)}
    judge = put(ctx, "judge", {"dataset": by}, told)
    table = pa.table(
        {"set": ["known", "known"], "index": [0, 1], "prompt": prompts["known"], "image": [b"drawn 0", b"drawn 1"]}
    )
    again = table.select(["index", "prompt", "image"])
    files = {"per_prompt.parquet": table, "diversity.parquet": again, "sheet.png": b"sheet"}
    files |= {"metrics.json": {"known": {}}}
    return judge, put(ctx, "assessment", {"model": of, "judge": judge}, files)


def full(ctx: Context) -> dict[str, Artifact]:
    """Every kind of artifact, by a name of its own."""
    first, second = collection(ctx, FIRST), collection(ctx, SECOND)
    made = {"first": first, "second": second, "scores": scores(ctx, first, FIRST), "more": scores(ctx, second, SECOND)}
    made["dataset"] = dataset(ctx, [first, second])
    made["latents"] = latents(ctx, made["dataset"])
    made["model"] = model(ctx, made["dataset"])
    made["judge"], made["assessment"] = measured(ctx, made["model"], made["dataset"])
    return made


def everything(ctx: Context, skip: Callable[[str], bool] = lambda name: False) -> dict[str, Any]:
    """All that can be read in the store: rows of tables, members of tars, other files as they are; by path."""
    fs, root = fsspec.core.url_to_fs(ctx.store.url)
    found: dict[str, Any] = {}
    for path in sorted(fs.find(root)):
        name = str(path)[len(root) :].lstrip("/")
        if name.endswith(".lock") or skip(name):
            continue
        data = bytes(fs.cat_file(path))
        if name.endswith(".parquet"):
            found[name] = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()
        elif name.endswith((".json", MANIFEST_NAME)):
            found[name] = json.loads(data)
        else:
            found[name] = data
    return found
