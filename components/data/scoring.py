"""The one pass over the bytes: every sample of the collections decoded, measured and cut, on Ray Data.

One task a shard; its file of scores is written whole, so a run that was killed goes on with the others.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.data.filtering import clean_caption
from components.runtime.progress import Progress
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Draft, write_bytes

SCORE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()), ("url", pa.string()), ("caption", pa.string()), ("sha256", pa.string()),
        ("width", pa.int32()), ("height", pa.int32()), ("grey_std", pa.float32()), ("pixel_sha256", pa.string()),
        ("phash", pa.uint64()), ("phash_mirror", pa.uint64()), ("thumb", pa.binary()), ("pixels", pa.binary()),
    ]
)  # fmt: skip


def score_all(ctx: Context, collections: Sequence[Artifact], draft: Draft) -> list[tuple[int, str]]:
    """Score every shard that is not scored yet: (position of the collection, URL of its scores), in order."""
    from components.data.blocks import run_pieces
    from components.runtime.cluster import ray_session

    run, files, pieces, samples = ctx.recipe.run, list[tuple[int, str]](), list[dict[str, Any]](), 0
    fs, _ = fsspec.core.url_to_fs(draft.url)
    for source, collection in enumerate(collections):
        for name in sorted(n for n in collection.manifest.files if n.startswith("shards/") and n.endswith(".tar")):
            scores = f"{draft.url}/_state/scores/{source:03d}-{name[len('shards/') : -len('.tar')]}.parquet"
            files.append((source, scores))
            if not fs.exists(fsspec.core.url_to_fs(scores)[1]):
                piece = {"shard": f"{collection.url}/{name}", "scores": scores, "side": ctx.recipe.prepare.image_size}
                pieces.append(piece)
        samples += collection.manifest.counts["success"]
    if pieces:
        progress = Progress("prepare", samples, "pictures", every_s=5.0)
        done = 0
        with ray_session(run):
            for result in run_pieces(pieces, _score_piece, run, max(1, run.cpus)):
                done += result["samples"]
                progress.update(done)
        progress.close()
    return files


def _score_piece(piece: dict[str, Any]) -> dict[str, Any]:
    """One shard, in a worker of Ray Data."""
    from PIL import Image

    from components.data.hashing import score
    from components.data.pictures import as_rgb
    from components.data.shards import read_tar

    rows = []
    with fsspec.open(piece["shard"], "rb") as file:
        data = file.read()
    for sample in read_tar(data):
        row = {name: sample.meta[name] for name in ("row", "url", "caption", "sha256")}
        try:
            picture = as_rgb(Image.open(io.BytesIO(sample.picture)))
        except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files: the row is dropped
            rows.append(row)
            continue
        rows.append(row | vars(score(picture, piece["side"])))
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), out, compression="zstd", compression_level=1)
    write_bytes(piece["scores"], out.getvalue())
    return {"samples": len(rows)}


class Scores:
    """The scores of every sample, in the order of collections and rows; pixels stay in their files.

    ``ids`` are the first 16 hex digits of sha256(source's sha256 + cleaned caption); sizes are in pixels and
    None where a picture could not be decoded.
    """

    def __init__(self, files: Sequence[tuple[int, str]]) -> None:
        names = [name for name in SCORE_SCHEMA.names if name != "pixels"]
        tables = []
        self._files, self._starts, self.sources = list(files), [0], list[int]()
        for source, url in files:
            with fsspec.open(url, "rb") as file:
                tables.append(pq.read_table(file, columns=names))
            self.sources += [source] * tables[-1].num_rows
            self._starts.append(len(self.sources))
        table = pa.concat_tables(tables)
        self.urls: list[str] = table["url"].to_pylist()
        self.captions = [clean_caption(c) for c in table["caption"].to_pylist()]
        self.sha256: list[str] = table["sha256"].to_pylist()
        self.pixel_sha256: list[str | None] = table["pixel_sha256"].to_pylist()
        self.ids = [
            hashlib.sha256(f"{sha}{caption}".encode()).hexdigest()[:16]
            for sha, caption in zip(self.sha256, self.captions, strict=True)
        ]
        self.widths: list[int | None] = table["width"].to_pylist()
        self.heights: list[int | None] = table["height"].to_pylist()
        self.grey_stds: list[float | None] = table["grey_std"].to_pylist()
        self.phash: npt.NDArray[np.uint64] = table["phash"].fill_null(0).to_numpy()
        self.phash_mirror: npt.NDArray[np.uint64] = table["phash_mirror"].fill_null(0).to_numpy()
        self._thumb = table["thumb"]

    def __len__(self) -> int:
        return len(self.sources)

    def thumbs(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Thumbnails of these decoded samples: (n, 16, 16, 3)."""
        data = b"".join(self._thumb.take(pa.array(positions)).to_pylist())
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, 16, 16, 3)

    def pixels(self, positions: Sequence[int]) -> list[bytes]:
        """Pixels of these samples, whose positions must ascend."""
        found: list[bytes] = []
        for number, (_, url) in enumerate(self._files):
            start, stop = self._starts[number], self._starts[number + 1]
            wanted = [p - start for p in positions if start <= p < stop]
            if wanted:
                with fsspec.open(url, "rb") as file:
                    found += pq.read_table(file, columns=["pixels"])["pixels"].take(pa.array(wanted)).to_pylist()
        return found
