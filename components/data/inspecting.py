"""One HTML page about a dataset: what came in, what was left out and why, what is in it. No other file is needed.

Numbers are read as columns and pictures by need, so that a large dataset costs little memory; the page is bounded.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts.recipe import Prepare
from components.data.deciding import Captions
from components.data.scores import Scores
from components.data.thresholds import Measure, histogram, measures_of
from components.runtime.storage import Artifact, write_bytes

_SAMPLES = 60
_EXAMPLES = 12  # of each reason, and on each side of each threshold
_LARGEST = 112  # pixels of the longer side on the page

Ints = npt.NDArray[np.int64]


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


def inspect_dataset(
    dataset: Artifact, collections: Sequence[Artifact], scored: Sequence[Artifact], path: str | Path
) -> Path:
    """Write the page about ``dataset`` to ``path``.

    It shows the funnel with reasons, a histogram of every score with its threshold, buckets, splits and languages,
    random rows, the samples nearest to each threshold on both sides, random samples of every reason, captions of
    merged copies, and what was expected. Equal artifacts give an equal page.

    Args:
        collections, scored: the dataset's inputs, in their order.
    """
    from jinja2 import Environment

    config = {k: v for k, v in dataset.manifest.config.items() if k in Prepare.model_fields}
    rules = Prepare.model_validate({**config, "clip": None, "aesthetic": None, "embedding": None})
    scores, rows = Scores.of(scored), _Rows(dataset)
    measures = measures_of(scores, rules)
    view = _View(scores, Captions(scores, rules), dataset)
    template = Path(__file__).with_name("inspecting.html").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            dataset=dataset,
            collections=collections,
            steps=funnel(dataset, collections),
            measures=[(m, histogram(m.values, m.limit, m.keep), int(m.beyond.sum())) for m in measures],
            histograms=[
                ("Shorter side at the source, pixels", histogram(_shorter(scores))),
                ("JPEG quality at the source, 100 where lossless", histogram(_known(scores.quality))),
                ("Tokens of a row, begin and end included", histogram(rows.tokens)),
            ],
            buckets=_counted(rows.table["bucket"]),
            splits=_counted(rows.table["split"]),
            sources=_counted(rows.table["source"]),
            languages=_counted(scores.texts("language").fill_null("not sure"))[:12],
            personal=_counted(pc.if_else(pc.equal(scores.texts("personal"), ""), "none", scores.texts("personal"))),
            samples=rows.shown(_random(len(rows.tokens), _SAMPLES)),
            edges=[view.edge(m) for m in measures],
            dropped=view.dropped(),
            merged=view.merged(),
            failed=_failed_examples(collections),
            expectations=_expectations(dataset),
        )
    )
    write_bytes(str(path), page.encode())
    return Path(path)


class _Rows:
    """The rows of the dataset without their pixels, and some of them with."""

    def __init__(self, dataset: Artifact) -> None:
        self._parts = dataset.paths("data/")
        names = ["caption", "tokens", "bucket", "split", "source", "alternatives"]
        self.table = pa.concat_tables([pq.read_table(part, columns=names) for part in self._parts])
        self.tokens = pc.list_value_length(self.table["tokens"]).to_numpy().astype(np.float32)

    def shown(self, at: Ints) -> list[dict[str, Any]]:
        """Caption, split, alternatives and picture of these rows, which must ascend."""
        found, start = list[dict[str, Any]](), 0
        for part in self._parts:
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                mine = at[(at >= start) & (at < stop)]
                if len(mine):
                    columns = ["caption", "split", "alternatives", "pixels", "width", "height"]
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    for row in table.take(pa.array(mine - start)).to_pylist():
                        size = (row.pop("width"), row.pop("height"))
                        found.append({**row, "picture": _picture(row.pop("pixels"), size)})
                start = stop
        return found


class _View:
    """Samples with their pictures as they were cut, kept or not."""

    def __init__(self, scores: Scores, captions: Captions, dataset: Artifact) -> None:
        self._scores, self._captions = scores, captions
        self._buckets = scores.texts("bucket")
        self._dropped = pq.read_table(dataset.path("dropped.parquet"))
        self._duplicates = pq.read_table(dataset.path("duplicates.parquet"))

    def edge(self, measure: Measure) -> dict[str, Any]:
        """The samples nearest to a threshold on either side."""
        sides = []
        for at in measure.nearest(_EXAMPLES):
            notes = [f"{measure.values[i]:.4g}" for i in at]
            sides.append(self._shown(at, self._captions.of(at), notes))
        return {"measure": measure, "beyond": sides[0], "kept": sides[1]}

    def dropped(self) -> dict[str, list[dict[str, Any]]]:
        """Random samples of every reason."""
        found = {}
        reasons = np.asarray(self._dropped["reason"].to_pylist(), dtype=object)
        for reason in sorted(set(reasons)):
            mine = np.flatnonzero(reasons == reason)
            rows = self._dropped.take(pa.array(mine[_random(len(mine), _EXAMPLES)])).to_pylist()
            found[str(reason)] = self._with_pictures(rows, "detail")
        return found

    def merged(self) -> list[list[dict[str, Any]]]:
        """Clusters whose captions say different things, the largest first."""
        table = self._duplicates
        conflicting = pc.unique(table.filter(table["conflict"])["cluster"])
        table = table.filter(pc.is_in(table["cluster"], value_set=conflicting))
        sizes = Counter(table["cluster"].to_pylist())
        chosen = sorted(sizes, key=lambda cluster: (-sizes[cluster], cluster))[:_EXAMPLES]
        found = []
        for cluster in chosen:
            rows = table.filter(pc.equal(table["cluster"], cluster)).to_pylist()
            rows = sorted(rows, key=lambda row: (not row["survives"], row["id"]))[:6]
            found.append(self._with_pictures(rows, "tier"))
        return found

    def _with_pictures(self, rows: list[dict[str, Any]], note: str) -> list[dict[str, Any]]:
        """Rows with url and sha256, found among the scores."""
        wanted = pa.array([row["sha256"] for row in rows], pa.large_string())
        near = np.flatnonzero(np.asarray(pc.is_in(self._scores.sha256, value_set=wanted)))
        keys = zip(
            self._scores.sha256.take(pa.array(near)).to_pylist(),
            self._scores.urls.take(pa.array(near)).to_pylist(),
            strict=True,
        )
        place = {key: int(at) for key, at in zip(keys, near, strict=True)}
        at = [place.get((row["sha256"], row["url"]), -1) for row in rows]  # -1: taken out of the scores since
        notes = [row[note] or "kept" for row in rows]
        return self._shown(np.array(at, np.int64), [row["caption"] for row in rows], notes, [r["url"] for r in rows])

    def _shown(
        self, at: Ints, captions: list[str], notes: list[str], urls: list[str] | None = None
    ) -> list[dict[str, Any]]:
        scores = self._scores
        ordered = np.unique(at[at >= 0])
        sizes = [tuple(map(int, (b or "0x0").split("x"))) for b in self._buckets.take(pa.array(ordered)).to_pylist()]
        cut = zip(ordered.tolist(), sizes, scores.pixels(ordered), strict=True)
        pictures = {i: _picture(pixels, size) for i, size, pixels in cut if pixels is not None}
        urls = urls or scores.urls.take(pa.array(at)).to_pylist()
        columns = zip(at.tolist(), captions, notes, urls, strict=True)
        return [{"picture": pictures.get(i), "caption": c, "note": n, "url": u} for i, c, n, u in columns]


def _picture(pixels: bytes, size: Any) -> str:
    """Pixels as a data URL: PNG while they are few, else a smaller JPEG."""
    from PIL import Image

    image, out = Image.frombytes("RGB", size, pixels), io.BytesIO()
    small = max(size) <= _LARGEST
    image.thumbnail((_LARGEST, _LARGEST))
    image.save(out, "PNG") if small else image.save(out, "JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode()}"


def _random(count: int, number: int) -> Ints:
    return np.array(sorted(random.Random(0).sample(range(count), min(number, count))), np.int64)


def _shorter(scores: Scores) -> npt.NDArray[np.float32]:
    sides = np.minimum(scores.widths, scores.heights).astype(np.float32)
    return sides[scores.decoded]


def _known(quality: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    return quality[quality >= 0].astype(np.float32)


def _counted(values: Any) -> list[tuple[str, int]]:
    counts = [(str(v["values"]), int(v["counts"])) for v in pc.value_counts(values).to_pylist()]
    return sorted(counts, key=lambda item: (-item[1], item[0]))


def _failed_examples(collections: Sequence[Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Five rows of every reason why a URL was not collected."""
    found: dict[str, list[dict[str, Any]]] = {}
    for collection in collections:
        ledger = pq.read_table(collection.path("ledger.parquet"), columns=["url", "reason", "detail", "opt_out"])
        ledger = ledger.filter(ledger["reason"].is_valid())
        for reason in pc.unique(ledger["reason"]).to_pylist():
            rows = found.setdefault(reason, [])
            rows += ledger.filter(pc.equal(ledger["reason"], reason)).slice(0, 5 - len(rows)).to_pylist()
    return dict(sorted(found.items()))


def _expectations(dataset: Artifact) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dataset.path("validation.json").read_text())["expectations"]
    return found
