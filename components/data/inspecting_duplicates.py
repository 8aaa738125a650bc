"""One HTML page about the clusters of duplicates of a dataset: who stays, who goes, by which tier. No other file.

Clusters come in two groups, each bounded: the doubtful ones (tied by the semantic tier, or with captions that say
different things), then the largest of the others. For each copy the page says how it was tied, how far its
thumbnail is from the survivor's, and why it was dropped. So many pictures as are shown are read, no more.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.data.guard import Refusal
from components.runtime.storage import Artifact, write_bytes

if TYPE_CHECKING:
    from PIL import Image

MOST_CLUSTERS = 100
MOST_MEMBERS = 12  # of a cluster
_SIDE = 128  # of a picture on the page, pixels
_THUMB = 16
_MAX_PIXELS = 50_000_000
_TIERS = ("exact", "near", "semantic")


@dataclass(frozen=True)
class _Seen:
    """A picture as it is shown: a data URL, and its thumbnail."""

    url: str
    thumb: npt.NDArray[np.int16]


def inspect_duplicates(
    dataset: Artifact, collections: Sequence[Artifact], path: str | Path, most: int = MOST_CLUSTERS
) -> Path:
    """Write the page about ``dataset``, which was prepared from ``collections``, to ``path``.

    At most ``most`` clusters with ``MOST_MEMBERS`` members each are shown. Equal artifacts give an equal page.
    """
    from jinja2 import Environment

    table = pq.ParquetFile(dataset.path("duplicates.parquet")).read(use_threads=False)
    clusters = _summary(table)
    doubtful, large = choose(clusters, most)
    chosen = pa.array([c["cluster"] for c in [*doubtful, *large]], pa.string())
    members = _members(table.filter(pc.is_in(table["cluster"], value_set=chosen)))
    shown = {(row["sha256"], row["url"]) for rows in members.values() for row in rows}
    pictures = _pictures(collections, shown)
    details = _details(dataset, shown)
    for rows in members.values():
        _complete(rows, pictures, details)
    template = Path(__file__).with_name("inspecting_duplicates.html").read_text(encoding="utf-8")
    page = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            dataset=dataset,
            total=len(clusters["cluster"]),
            dropped={tier: int(pc.sum(pc.equal(table["tier"], tier)).as_py() or 0) for tier in _TIERS},
            conflicts=int(pc.sum(table["conflict"]).as_py() or 0),
            sizes=_sizes(clusters["size"]),
            groups=[
                (
                    "Look at these first",
                    "Tied by the semantic tier, or with captions that say different things.",
                    [(c, members[c["cluster"]]) for c in doubtful],
                ),
                (
                    "The largest of the others",
                    "Tied by equal bytes or pixels, or by hash and thumbnail.",
                    [(c, members[c["cluster"]]) for c in large],
                ),
            ],
        )
    )
    write_bytes(str(path), page.encode())
    return Path(path)


def _summary(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """By cluster, in the order of their names: size, members tied by the semantic tier, captions in conflict."""
    flags = pa.table(
        {
            "cluster": table["cluster"],
            "semantic": pc.equal(table["tier"], "semantic").fill_null(False).cast(pa.int64()),
            "conflict": table["conflict"].fill_null(False).cast(pa.int64()),
        }
    )
    found = flags.group_by("cluster", use_threads=False).aggregate(
        [("cluster", "count"), ("semantic", "sum"), ("conflict", "sum")]
    )
    found = found.sort_by("cluster")
    names = {"cluster": "cluster", "size": "cluster_count", "semantic": "semantic_sum", "conflict": "conflict_sum"}
    return {name: np.asarray(found[column]) for name, column in names.items()}


def choose(clusters: dict[str, npt.NDArray[Any]], most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Which clusters are shown: the doubtful ones, those with most members in doubt first, then the largest.

    Half of the room is for each; what one group leaves is the other's.
    """
    size, cluster = clusters["size"], clusters["cluster"]
    doubt = clusters["semantic"] + clusters["conflict"]
    doubtful = np.lexsort((cluster, -size, -doubt))[: int((doubt > 0).sum())]
    large = np.lexsort((cluster, -size))
    large = large[doubt[large] == 0]
    room = max(most // 2, most - len(large))
    doubtful = doubtful[:room]
    large = large[: most - len(doubtful)]

    columns = {name: values.tolist() for name, values in clusters.items()}

    def rows(at: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
        return [{name: values[i] for name, values in columns.items()} for i in at.tolist()]

    return rows(doubtful), rows(large)


def _members(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """The first members of every cluster: the survivor, then who is most in doubt."""
    members: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        members.setdefault(row["cluster"], []).append(row)

    def rank(row: dict[str, Any]) -> tuple[bool, bool, int, str]:
        tier = _TIERS.index(row["tier"]) if row["tier"] in _TIERS else -1
        return not row["survives"], not row["conflict"], -tier, row["id"]

    return {cluster: sorted(rows, key=rank)[:MOST_MEMBERS] for cluster, rows in members.items()}


def _complete(
    rows: list[dict[str, Any]], pictures: dict[tuple[str, str], _Seen], details: dict[tuple[str, str], str]
) -> None:
    """Add to the members of a cluster their picture, the distance from the first survivor's, and why they go."""
    survivor = pictures.get((rows[0]["sha256"], rows[0]["url"]))
    for row in rows:
        key = (row["sha256"], row["url"])
        seen = pictures.get(key)
        row["picture"] = seen.url if seen else None
        row["detail"] = details.get(key)
        row["distance"] = None
        if seen and survivor and not row["survives"]:
            turned = (survivor.thumb, survivor.thumb[:, ::-1])
            row["distance"] = min(float(np.abs(seen.thumb - thumb).mean()) for thumb in turned)


def _details(dataset: Artifact, shown: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What ``dropped.parquet`` says of the pictures shown."""
    file = pq.ParquetFile(dataset.path("dropped.parquet"))
    wanted = pa.array(sorted({sha256 for sha256, _ in shown}), pa.string())
    found = dict[tuple[str, str], str]()
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["url", "sha256", "detail"], use_threads=False)
        for row in table.filter(pc.is_in(table["sha256"], value_set=wanted)).to_pylist():
            found[row["sha256"], row["url"]] = row["detail"]
    return found


def _pictures(collections: Sequence[Artifact], shown: set[tuple[str, str]]) -> dict[tuple[str, str], _Seen]:
    """The pictures shown, from the shards that hold one of them."""
    from components.data.shards import read_tar

    wanted = pa.array(sorted({sha256 for sha256, _ in shown}), pa.string())
    found = dict[tuple[str, str], _Seen]()
    for collection in collections:
        columns = ["url", "sha256", "shard", "key"]
        ledger = pq.ParquetFile(collection.path("ledger.parquet")).read(columns=columns, use_threads=False)
        places: dict[str, dict[str, tuple[str, str]]] = {}
        for row in ledger.filter(pc.is_in(ledger["sha256"], value_set=wanted)).to_pylist():
            if row["shard"] is not None and (row["sha256"], row["url"]) in shown:
                places.setdefault(row["shard"], {})[row["key"]] = (row["sha256"], row["url"])
        for shard, keys in sorted(places.items()):
            for sample in read_tar(collection.path(f"shards/{shard}.tar")):
                if sample.key in keys and keys[sample.key] not in found:
                    seen = _seen(sample.picture)
                    if seen is not None:
                        found[keys[sample.key]] = seen
    return found


def _seen(data: bytes) -> _Seen | None:
    from PIL import Image

    from components.data.pictures import decoded

    try:
        image: Image.Image = decoded(data, _MAX_PIXELS)
    except Refusal:
        return None
    thumb = np.asarray(image.resize((_THUMB, _THUMB), Image.Resampling.BOX), dtype=np.int16)
    small, out = max(image.size) <= _SIDE, io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(out, "PNG") if small else image.save(out, "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return _Seen(f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", thumb)


def _sizes(sizes: npt.NDArray[np.int64]) -> list[tuple[str, int]]:
    """How many clusters there are of each size, sizes from ten on together by powers of ten."""
    bounds = [2, 3, 4, 5, 10, 100, 1000]
    names = ["2", "3", "4", "5–9", "10–99", "100–999", "1000 and more"]
    counts = np.bincount(np.digitize(sizes, bounds), minlength=len(bounds) + 1)[1:]
    return [(name, int(count)) for name, count in zip(names, counts, strict=True) if count]
