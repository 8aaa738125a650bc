"""Score once, filter late: the one pass over the bytes of a collection, on Ray Data.

Every sample is decoded once, measured (:data:`components.data.scores.SCORE_SCHEMA`) and cut to the size of its
bucket. What decides reads the numbers alone (:class:`components.data.scores.Scores`). One task a shard; its file
of scores is written last and whole, so a run that was killed goes on with the other shards.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from components.contracts.recipe import Prepare
from components.data.buckets import Size, bucket_sizes, nearest, step_of
from components.data.filtering import require_measured
from components.data.scores import PIXEL_SCHEMA, SCORE_SCHEMA
from components.data.takedown import not_while_taking_down
from components.runtime.progress import Progress
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes, write_chunks

if TYPE_CHECKING:
    from PIL import Image

SCORE_VERSION = 1  # raised when the same sample would get other scores
_GROUP_BYTES = 16_000_000  # of pixels in a row group, at most: what a reader holds in memory
_GROUP_ROWS = 2_000
_BATCH = 32  # pictures that models look at together
_BATCH_PIXELS = 16_000_000  # ... and what they may have together
_CHUNK = 1 << 20


def score(ctx: Context, collection: Artifact) -> Artifact:
    """The scores of a collection: artifact ``scores``, made once for what the recipe measures.

    Raises:
        RecipeError: a model that the recipe names is not there, or a threshold asks for what is not measured.
    """
    rules = ctx.recipe.prepare
    require_measured(rules)
    sizes = bucket_sizes(rules.image_size, rules.buckets, step_of(ctx.recipe))
    config = {"version": SCORE_VERSION, "sizes": [list(size) for size in sizes], **_digests(rules)}

    def build(draft: Draft) -> Outcome:
        not_while_taking_down(ctx.store.url)
        return _build(ctx, collection, sizes, draft)

    return run_stage(ctx, "scores", {"collection": collection}, config, build, label="score")


def _digests(rules: Prepare) -> dict[str, str | None]:
    """What measures, by the content of the models: where they lie is circumstance."""
    from components.data import embedding
    from components.data.scorers import model_digest

    return {
        "clip": model_digest("clip", rules.clip) if rules.clip else None,
        "aesthetic": model_digest("aesthetic", rules.aesthetic) if rules.aesthetic else None,
        "embedding": embedding.digest(rules.embedding) if rules.embedding else None,
    }


def _build(ctx: Context, collection: Artifact, sizes: tuple[Size, ...], draft: Draft) -> Outcome:
    from components.runtime.cluster import ray_session
    from components.runtime.pieces import run_pieces

    rules, run = ctx.recipe.prepare, ctx.recipe.run
    shards = sorted(n for n in collection.manifest.files if n.startswith("shards/") and n.endswith(".tar"))
    names = [name[len("shards/") : -len(".tar")] for name in shards]
    fs, folder = fsspec.core.url_to_fs(draft.url)
    pieces = [
        {
            "shard": f"{collection.url}/shards/{name}.tar",
            "name": name,
            "url": draft.url,
            "sizes": sizes,
            "max_pixels": int(collection.manifest.config.get("max_pixels", ctx.recipe.collect.max_pixels)),
            "clip": rules.clip,
            "aesthetic": rules.aesthetic,
            "embedding": rules.embedding,
        }
        for name in names
        if not fs.exists(f"{folder}/scores/{name}.parquet")
    ]
    if pieces:
        progress, done = Progress("score", collection.manifest.counts["success"], "pictures", every_s=5.0), 0
        with ray_session(run):
            for result in run_pieces(pieces, _score_piece, run, max(1, run.cpus)):
                done += result["samples"]
                progress.update(done)
        progress.close()
    samples = decoded = 0
    for name in names:
        column = _column(f"{draft.url}/scores/{name}.parquet", "kept_width")
        samples, decoded = samples + len(column), decoded + len(column) - column.null_count
    return Outcome(counts={"samples": samples, "decoded": decoded})


def _column(url: str, name: str) -> pa.ChunkedArray:
    fs, path = fsspec.core.url_to_fs(url)
    return pq.read_table(pa.BufferReader(fs.cat_file(path)), columns=[name])[name]


def _score_piece(piece: dict[str, Any]) -> dict[str, Any]:
    """One shard, in a worker of Ray Data."""
    import cv2

    from components.data.shards import read_tar
    from components.runtime.cluster import apply_quiet_environment

    apply_quiet_environment()
    cv2.setNumThreads(1)  # the other cores have tasks of their own
    scorer = _Scorer(piece)
    with tempfile.TemporaryDirectory(prefix="atelier-scores-") as folder:
        shard, pixels = _local(piece["shard"], Path(folder)), Path(folder) / "pixels.parquet"
        with pq.ParquetWriter(pixels, PIXEL_SCHEMA, compression="zstd", compression_level=1) as writer:
            for sample in read_tar(shard):
                scorer.add(sample, writer)
            scorer.flush(writer)
        write_chunks(f"{piece['url']}/pixels/{piece['name']}.parquet", _chunks(pixels))
    out = pa.BufferOutputStream()
    pq.write_table(_table(scorer.rows), out, compression="zstd", compression_level=1)
    write_bytes(f"{piece['url']}/scores/{piece['name']}.parquet", out.getvalue().to_pybytes())
    return {"samples": len(scorer.rows)}


class _Scorer:
    """Rows of scores of one shard; pixels go to their file, pictures to the models, in groups of bounded size."""

    def __init__(self, piece: dict[str, Any]) -> None:
        from components.data import embedding, scorers

        self.rows: list[dict[str, Any]] = []
        self._sizes = [(int(width), int(height)) for width, height in piece["sizes"]]
        self._max_pixels = int(piece["max_pixels"])
        self._clip = scorers.clip_scorer(piece["clip"]) if piece["clip"] else None
        self._aesthetic = scorers.aesthetic_scorer(piece["aesthetic"]) if piece["aesthetic"] else None
        self._embedder = embedding.load(piece["embedding"]) if piece["embedding"] else None
        largest = max(width * height * 3 for width, height in self._sizes)
        self._group = max(1, min(_GROUP_ROWS, _GROUP_BYTES // largest))
        self._pixels: list[tuple[int, bytes | None]] = []
        self._waiting: list[tuple[dict[str, Any], Image.Image]] = []

    def add(self, sample: Any, writer: Any) -> None:
        from components.data import hashing, wording
        from components.data.guard import Refusal
        from components.data.pictures import decoded

        meta = sample.meta
        clean = wording.clean_caption(meta["caption"])
        row: dict[str, Any] = {name: meta[name] for name in ("row", "url", "caption", "sha256")}
        row |= {"clean": clean, "id": int(hashlib.sha256(f"{meta['sha256']}{clean}".encode()).hexdigest()[:16], 16)}
        row |= {"width": meta["original_width"], "height": meta["original_height"], "quality": meta.get("quality")}
        row |= asdict(wording.measure(clean))
        pixels: bytes | None = None
        try:
            picture = decoded(sample.picture, self._max_pixels)
        except Refusal:
            pass  # its scores are null, and filtering says so
        else:
            size = nearest(picture.width, picture.height, self._sizes)
            measures = vars(hashing.measure(picture, size))
            pixels = measures["pixels"]
            row |= measures
            self._show(row, picture)
        row.pop("pixels", None)
        self.rows.append(row)
        self._pixels.append((row["row"], pixels))
        if len(self._pixels) >= self._group:
            self._write(writer)

    def flush(self, writer: Any) -> None:
        """The last groups."""
        self._look()
        self._write(writer)

    def _show(self, row: dict[str, Any], picture: Image.Image) -> None:
        from components.data.sketches import sketch

        if self._embedder is not None:
            row["sketch"] = sketch(picture)
        if self._clip or self._aesthetic or self._embedder:
            self._waiting.append((row, picture))
            pixels = sum(p.width * p.height for _, p in self._waiting)
            if len(self._waiting) >= _BATCH or pixels >= _BATCH_PIXELS:
                self._look()

    def _look(self) -> None:
        rows, pictures = [row for row, _ in self._waiting], [picture for _, picture in self._waiting]
        self._waiting = []
        found: dict[str, Any] = {}
        if not rows:
            return
        if self._clip is not None:
            values = self._clip.similarities(pictures, [row["clean"] for row in rows]).tolist()
            found["clip_similarity"] = [None if np.isnan(value) else value for value in values]
        if self._aesthetic is not None:
            found["aesthetic"] = self._aesthetic.values(pictures).tolist()
        if self._embedder is not None:
            found["embedding"] = self._embedder.embed(pictures)
        for name, values in found.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value

    def _write(self, writer: Any) -> None:
        if self._pixels:
            rows, pixels = zip(*self._pixels, strict=True)
            writer.write_table(pa.table({"row": rows, "pixels": pixels}, schema=PIXEL_SCHEMA))
            self._pixels = []


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = {
        field.name: pa.array([row.get(field.name) for row in rows], type=field.type)
        for field in SCORE_SCHEMA
        if field.name != "embedding"
    }
    vectors = [row.get("embedding") for row in rows]
    lengths = np.array([0 if v is None else len(v) for v in vectors], dtype=np.int64)
    flat = np.concatenate([np.empty(0, dtype=np.float16), *(v for v in vectors if v is not None)])
    columns["embedding"] = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
        pa.array(flat.astype(np.float16)),
        mask=pa.array([v is None for v in vectors], pa.bool_()),
    )
    return pa.table([columns[name] for name in SCORE_SCHEMA.names], schema=SCORE_SCHEMA)


def _local(url: str, folder: Path) -> Path:
    """The file as a local one; from a remote store it is fetched into ``folder``."""
    fs, path = fsspec.core.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        return Path(path)
    target = folder / "shard.tar"
    fs.get_file(path, str(target))
    return target


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
