"""One HTML page about a dataset: what came in, what was left out and why, what is in it. No other file is needed."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.runtime.storage import Artifact, write_bytes

_SAMPLES = 60
_EXAMPLES = 12  # of each reason
_BARS = 24


@dataclass(frozen=True)
class Step:
    """One step of the funnel: how many are left after it, and how many it took away, by reason."""

    name: str
    left: int
    lost: dict[str, int]


def funnel(dataset: Artifact, collections: Sequence[Artifact]) -> list[Step]:
    """From the URLs of the lists to the rows of the dataset, from the manifests alone."""
    failed: dict[str, int] = {}
    for collection in collections:
        for reason, number in collection.manifest.dropped.items():
            failed[reason] = failed.get(reason, 0) + number
    urls = sum(c.manifest.counts["urls"] for c in collections)
    collected = sum(c.manifest.counts["success"] for c in collections)
    return [
        Step("URLs listed", urls, {}),
        Step("pictures collected", collected, dict(sorted(failed.items()))),
        Step("rows of the dataset", dataset.manifest.counts["rows"], dict(sorted(dataset.manifest.dropped.items()))),
    ]


def inspect_dataset(dataset: Artifact, collections: Sequence[Artifact], path: str | Path) -> Path:
    """Write the page about ``dataset``, which was prepared from ``collections``, to ``path``.

    It shows the funnel with reasons, histograms, aspect buckets and splits, random samples, and for every
    reason examples of what was dropped. Equal artifacts give an equal page.
    """
    from jinja2 import Environment

    rows = [row for part in dataset.paths("data/") for row in _rows(part)]
    shown = random.Random(0).sample(range(len(rows)), min(_SAMPLES, len(rows)))
    pixels = _pixels(dataset, set(shown))
    ledgers = [pq.read_table(c.path("ledger.parquet")).to_pylist() for c in collections]
    sides = [min(r["width"], r["height"]) for ledger in ledgers for r in ledger if r["status"] == "success"]
    template = Path(__file__).with_name("inspecting.html").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            dataset=dataset,
            collections=collections,
            steps=funnel(dataset, collections),
            histograms=[
                ("Shorter side at the source, pixels", _histogram(sides)),
                ("Caption length, characters", _histogram([len(r["caption"]) for r in rows])),
                ("Tokens, begin and end included", _histogram([len(r["tokens"]) for r in rows])),
            ],
            buckets=_counted(r["bucket"] for r in rows),
            splits=_counted(r["split"] for r in rows),
            samples=[(rows[i]["caption"], rows[i]["split"], pixels[i]) for i in sorted(shown)],
            failed=_failed_examples(ledgers),
            dropped=_dropped_examples(dataset, collections, ledgers),
        )
    )
    write_bytes(str(path), page.encode())
    return Path(path)


def _rows(part: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(part, columns=["caption", "tokens", "bucket", "split"]).to_pylist()
    return rows


def _pixels(dataset: Artifact, wanted: set[int]) -> dict[int, str]:
    """Rows of the dataset as PNG data URLs."""
    from PIL import Image

    found, start = dict[int, str](), 0
    for part in dataset.paths("data/"):
        table = pq.read_table(part, columns=["pixels", "width", "height"])
        for i in sorted(wanted):
            if start <= i < start + table.num_rows:
                row = table.slice(i - start, 1).to_pylist()[0]
                out = io.BytesIO()
                Image.frombytes("RGB", (row["width"], row["height"]), row["pixels"]).save(out, "PNG")
                found[i] = _data_url(out.getvalue(), "png")
        start += table.num_rows
    return found


def _failed_examples(ledgers: Sequence[list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for ledger in ledgers:
        for row in ledger:
            if row["reason"] and len(found.setdefault(row["reason"], [])) < 5:
                found[row["reason"]].append(row)
    return dict(sorted(found.items()))


def _dropped_examples(
    dataset: Artifact, collections: Sequence[Artifact], ledgers: Sequence[list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Examples of every reason, with their pictures from the collections' shards."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(dataset.path("dropped.parquet")).to_pylist():
        if len(found.setdefault(row["reason"], [])) < _EXAMPLES:
            found[row["reason"]].append(row)
    wanted = {row["url"] for rows in found.values() for row in rows}
    pictures = dict[str, str]()
    for collection, ledger in zip(collections, ledgers, strict=True):
        places = {r["key"]: r for r in ledger if r["url"] in wanted and r["status"] == "success"}
        for shard in sorted({r["shard"] for r in places.values()}):
            _take_pictures(collection.path(f"shards/{shard}.tar"), places, pictures)
    for rows in found.values():
        for row in rows:
            row["picture"] = pictures.get(row["url"])
    return dict(sorted(found.items()))


def _take_pictures(shard: Path, places: dict[str, dict[str, Any]], pictures: dict[str, str]) -> None:
    from components.data.shards import read_tar

    for sample in read_tar(shard.read_bytes()):
        if sample.key in places:
            kind = "png" if sample.ending == "png" else "jpeg"
            pictures.setdefault(str(sample.meta["url"]), _data_url(sample.picture, kind))


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _counted(values: Any) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _histogram(values: Sequence[int]) -> list[tuple[str, int, float]]:
    """Bars as (label, count, share of the highest bar in percent); whole numbers, at most ``_BARS`` bars."""
    if not values:
        return []
    low, high = min(values), max(values)
    step = max(1, -(-(high - low + 1) // _BARS))
    counts = [0] * ((high - low) // step + 1)
    for value in values:
        counts[(value - low) // step] += 1
    starts = range(low, low + step * len(counts), step)
    labels = [str(start) if step == 1 else f"{start}–{start + step - 1}" for start in starts]
    top = max(counts)
    return [(label, count, 100 * count / top) for label, count in zip(labels, counts, strict=True)]
