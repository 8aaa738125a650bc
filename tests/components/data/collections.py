"""Small collections of given pictures, written through the store as collect does."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from components.data.shards import Sample, ledger_table, parquet_bytes, tar_bytes
from components.runtime.storage import Artifact, Outcome, Store, write_bytes

SHARD_ROWS = 16


@dataclass(frozen=True)
class Shown:
    """One row of a list: a picture, or None where it could not be had; ``ledger`` overwrites columns of its row."""

    picture: Image.Image | None
    caption: str | None
    source: tuple[int, int] | None = None  # size at the source
    quality: int | None = None  # of the JPEG at the source, None for PNG
    data: bytes | None = None  # in place of the picture's
    ledger: dict[str, Any] = field(default_factory=dict)


def drawn(number: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A picture unlike those of other numbers."""
    colours = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def make_collection(store: Store, rows: Sequence[Shown], name: str = "a", **config: Any) -> Artifact:
    """A collection of these rows; URLs are ``http://{name}.example/{row}``."""
    draft = store.draft("collection", {}, {"list": name, "max_bytes": 1_000_000, **config})
    ledger, samples = [], list[Sample]()
    for number, row in enumerate(rows):
        url = f"http://{name}.example/{number}"
        entry: dict[str, Any] = {"row": number, "url": url, "caption": row.caption, "attempts": 1}
        if row.picture is None and row.data is None:
            failed = {"status": "failed", "reason": "http_404", "detail": "not found", "http_status": 404, "bytes": 0}
            ledger.append({**entry, **failed, **row.ledger})
            continue
        data = row.data
        if data is None:
            out = io.BytesIO()
            assert row.picture is not None
            row.picture.save(out, "PNG") if row.quality is None else row.picture.save(out, "JPEG", quality=row.quality)
            data = out.getvalue()
        width, height = row.source or (row.picture.size if row.picture else (64, 64))
        key, quality = f"{number:09d}", row.quality or 100
        meta = {
            "key": key, "row": number, "url": url, "caption": row.caption, "quality": quality,
            "sha256": hashlib.sha256(data).hexdigest(), "original_width": width, "original_height": height,
        }  # fmt: skip
        samples.append(Sample(key, "png" if row.quality is None else "jpg", data, meta))
        good = {"status": "success", "http_status": 200, "bytes": len(data), "sha256": meta["sha256"], "key": key}
        shard = f"{number // SHARD_ROWS:05d}"
        ledger.append(
            {**entry, **good, "width": width, "height": height, "quality": quality, "shard": shard, **row.ledger}
        )
    for shard in sorted({f"{s.meta['row'] // SHARD_ROWS:05d}" for s in samples}):
        mine = [s for s in samples if f"{s.meta['row'] // SHARD_ROWS:05d}" == shard]
        write_bytes(f"{draft.url}/shards/{shard}.tar", tar_bytes(mine))
    write_bytes(f"{draft.url}/ledger.parquet", parquet_bytes(ledger_table(ledger)))
    counts = {"urls": len(rows), "success": len(samples), "failed": len(rows) - len(samples)}
    return draft.commit(Outcome(counts=counts, dropped={"http_404": counts["failed"]} if counts["failed"] else {}))
