"""Reader of ``scores`` artifacts: what was measured of every sample, as columns; pictures stay in their files.

Files of a ``scores`` artifact, one pair for each shard of its collection: ``scores/00000.parquet``
(``SCORE_SCHEMA``) and ``pixels/00000.parquet`` (``PIXEL_SCHEMA``), row for row the samples of that shard.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from components.contracts.errors import ArtifactError
from components.data.sketches import SKETCH_BYTES
from components.runtime.storage import Artifact

THUMB = 16  # side of the thumbnails that near-duplicates are confirmed by

SCORE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # of the collection's ledger
        ("url", pa.string()),
        ("caption", pa.string()),  # as collected
        ("clean", pa.string()),  # as `wording.clean_caption` gives it; personal data still in it
        ("sha256", pa.string()),  # of the source's bytes
        ("id", pa.uint64()),  # first 64 bits of sha256(sha256 of the source's bytes + clean caption)
        ("width", pa.int32()),  # of the picture at its source, in pixels, as it is seen
        ("height", pa.int32()),
        ("kept_width", pa.int32()),  # of the picture in the shard; null, as all below, where it cannot be decoded
        ("kept_height", pa.int32()),
        ("quality", pa.int16()),  # of the source: 100 where lossless, else the JPEG quality; null where unknown
        ("grey_std", pa.float32()),  # standard deviation of the grey values, 0..127.5
        ("sharpness", pa.float32()),  # variance of the Laplacian of the grey values
        ("entropy", pa.float32()),  # of the grey values' histogram, in bits, 0..8
        ("pixel_sha256", pa.string()),  # of all RGB pixels of the picture in the shard
        ("phash", pa.uint64()),
        ("phash_mirror", pa.uint64()),
        ("thumb", pa.binary(THUMB * THUMB * 3)),  # 16x16 RGB
        ("bucket", pa.string()),  # "{width}x{height}" of the pixels
        ("language", pa.string()),  # ISO 639-1 of the clean caption, null where that is not sure
        ("language_confidence", pa.float32()),  # 0..1
        ("words", pa.int32()),
        ("characters", pa.int32()),
        ("repetition", pa.float32()),  # share of the words that repeat earlier ones
        ("personal", pa.string()),  # kinds of personal data in the caption, sorted, with commas; "" where none
        ("clip_similarity", pa.float32()),  # cosine of picture and caption; null unless the recipe names a model
        ("aesthetic", pa.float32()),  # null unless the recipe names a model
        ("embedding", pa.list_(pa.float16())),  # of the semantic tier; null, as the sketch, unless the recipe names one
        ("sketch", pa.binary(SKETCH_BYTES)),  # see components.data.sketches
    ]
)  # fmt: skip
PIXEL_SCHEMA = pa.schema([("row", pa.int64()), ("pixels", pa.binary())])  # uint8 RGB of the bucket's size, row major

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One pair of files. ``source`` is the position of its collection; URLs may be any fsspec URL or path."""

    source: int
    scores: str
    pixels: str


class Scores:
    """The scores of every sample of some collections, in the order of collections, shards and rows.

    A sample is named by its position, 0 .. len - 1. Columns are arrays over all samples; ``at`` is always an
    array of positions. Memory: about 0.5 KB a sample, texts included; thumbnails, sketches and embeddings
    lie in temporary files that are mapped into memory at first use.

    Attributes:
        sources: int32, position of the sample's collection. rows: int64, row of that collection's ledger.
        ids: uint64; in the order of their 16 hex digits (:meth:`id_texts`).
        urls, captions, sha256, pixel_sha256: ``pa.LargeStringArray``; captions are clean, pixel_sha256 is null
            where the picture cannot be decoded.
        decoded: bool.
        widths, heights: int32, pixels of the source. kept_widths, kept_heights: int32, of the picture in the
            shard. All 0 where the picture cannot be decoded.
        quality: int16, 1..100, -1 where unknown.
        phash, phash_mirror: uint64, 0 where the picture cannot be decoded.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        names = ["row", "url", "clean", "sha256", "id", "width", "height", "kept_width", "kept_height"]
        names += ["quality", "pixel_sha256", "phash", "phash_mirror"]
        self._parts = list(parts)
        self._kept = dict[str, Any]()  # columns that were asked for
        tables = [_read(part.scores, names) for part in self._parts]
        self._starts = np.concatenate([[0], np.cumsum([t.num_rows for t in tables], dtype=np.int64)]).astype(np.int64)
        self.sources = np.repeat(np.array([p.source for p in self._parts], dtype=np.int32), np.diff(self._starts))
        table = pa.concat_tables(tables) if tables else SCORE_SCHEMA.empty_table().select(names)
        columns = {name: table[name] for name in names}
        del tables, table
        take = columns.pop  # what has been copied is freed, and its memory serves the next column
        self.urls = _texts(take("url"))
        self.captions = _texts(take("clean"))
        self.sha256 = _texts(take("sha256"))
        self.pixel_sha256 = _texts(take("pixel_sha256"))
        self.rows: Ints = _numbers(take("row"), 0, np.int64)
        self.ids: npt.NDArray[np.uint64] = _numbers(take("id"), 0, np.uint64)
        self.decoded: npt.NDArray[np.bool_] = columns["kept_width"].is_valid().to_numpy()
        self.kept_widths: npt.NDArray[np.int32] = _numbers(take("kept_width"), 0, np.int32)
        self.kept_heights: npt.NDArray[np.int32] = _numbers(take("kept_height"), 0, np.int32)
        self.widths: npt.NDArray[np.int32] = _numbers(take("width"), 0, np.int32)
        self.heights: npt.NDArray[np.int32] = _numbers(take("height"), 0, np.int32)
        self.quality: npt.NDArray[np.int16] = _numbers(take("quality"), -1, np.int16)
        self.phash: npt.NDArray[np.uint64] = _numbers(take("phash"), 0, np.uint64)
        self.phash_mirror: npt.NDArray[np.uint64] = _numbers(take("phash_mirror"), 0, np.uint64)
        pa.default_memory_pool().release_unused()

    @classmethod
    def of(cls, artifacts: Sequence[Artifact]) -> Scores:
        """The scores of these artifacts; the position of each is the ``source`` of its samples."""
        return cls(
            [
                Part(source, f"{artifact.url}/{name}", f"{artifact.url}/pixels/{name.removeprefix('scores/')}")
                for source, artifact in enumerate(artifacts)
                for name in sorted(artifact.manifest.files)
                if name.startswith("scores/")
            ]
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def id_texts(self, at: Ints) -> list[str]:
        """Ids of these samples as 16 hex digits."""
        return [f"{number:016x}" for number in self.ids[at].tolist()]

    def numbers(self, name: str) -> npt.NDArray[np.float32]:
        """A numeric column of ``SCORE_SCHEMA`` over all samples, NaN where it is null; read when first asked for."""
        if name not in self._kept:
            self._kept[name] = _numbers(self._column(name).cast(pa.float32()), np.nan, np.float32)
        column: npt.NDArray[np.float32] = self._kept[name]
        return column

    def texts(self, name: str) -> pa.LargeStringArray:
        """A text column of ``SCORE_SCHEMA`` over all samples; read when first asked for."""
        if name not in self._kept:
            self._kept[name] = _texts(self._column(name))
        return self._kept[name]

    def thumbs(self, at: Ints) -> npt.NDArray[np.uint8]:
        """Thumbnails of these samples: (m, 16, 16, 3); zeros where the picture cannot be decoded."""
        return np.asarray(self._thumbs[at], dtype=np.uint8).reshape(-1, THUMB, THUMB, 3)

    def sketches(self, at: Ints) -> npt.NDArray[np.uint8]:
        """Sketches of these samples: (m, ``SKETCH_BYTES``); zeros where there is none."""
        return np.asarray(self._sketches[at], dtype=np.uint8)

    def embeddings(self, at: Ints) -> npt.NDArray[np.float16]:
        """Embeddings of these samples: (m, d); zeros where the picture cannot be decoded.

        Raises:
            ArtifactError: the scores hold none, or not all are of one length.
        """
        return np.asarray(self._embeddings[at], dtype=np.float16)

    def pixels(self, at: Ints) -> Iterator[bytes | None]:
        """Pixels of these samples (uint8 RGB, row major), in their order; ``at`` must ascend.

        One row group of one file is in memory at a time. None where a picture cannot be decoded.

        Raises:
            ArtifactError: a file of pixels does not match its file of scores.
        """
        at = np.asarray(at, dtype=np.int64)
        for number, part in enumerate(self._parts):
            start, stop = self._starts[number], self._starts[number + 1]
            wanted = at[np.searchsorted(at, start) : np.searchsorted(at, stop)] - start
            if not len(wanted):
                continue
            file = pq.ParquetFile(_input(part.pixels))
            begin = 0
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                inside = wanted[np.searchsorted(wanted, begin) : np.searchsorted(wanted, end)]
                if len(inside):
                    table = file.read_row_group(group, use_threads=False)
                    rows = table["row"].to_numpy()
                    if not np.array_equal(rows, self.rows[start + begin : start + end]):
                        raise ArtifactError(
                            f"{part.pixels} does not hold the rows of {part.scores}",
                            remedy="delete that folder and run the same command again; it is made anew",
                        )
                    for value in table["pixels"].take(pa.array(inside - begin)):
                        yield value.as_py()
                begin = end

    def _column(self, name: str) -> pa.ChunkedArray:
        chunks = [chunk for part in self._parts for chunk in _read(part.scores, [name])[name].chunks]
        return pa.chunked_array(chunks, type=SCORE_SCHEMA.field(name).type)

    @cached_property
    def _thumbs(self) -> Any:
        return self._fixed("thumb", THUMB * THUMB * 3)

    @cached_property
    def _sketches(self) -> Any:
        return self._fixed("sketch", SKETCH_BYTES)

    def _fixed(self, name: str, width: int) -> Any:
        matrix = _spool(len(self), width, np.uint8)
        for number, part in enumerate(self._parts):
            for chunk, start in _chunks(_read(part.scores, [name])[name], int(self._starts[number])):
                valid = np.flatnonzero(np.asarray(chunk.is_valid()))
                if len(valid):
                    data = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * width, chunk.offset * width)
                    matrix[start + valid] = data.reshape(-1, width)[valid]
        return matrix

    @cached_property
    def _embeddings(self) -> Any:
        matrix: Any = None
        for number, part in enumerate(self._parts):
            for chunk, start in _chunks(_read(part.scores, ["embedding"])["embedding"], int(self._starts[number])):
                valid = np.flatnonzero(np.asarray(chunk.is_valid()))
                found = chunk.drop_null()
                lengths = np.unique(np.asarray(pc.list_value_length(found)))
                if len(lengths) > 1 or (matrix is not None and len(lengths) and matrix.shape[1] != lengths[0]):
                    raise ArtifactError(
                        "The embeddings of the scores differ in length",
                        remedy="prepare collections together that were scored with the same model",
                    )
                if len(lengths):
                    matrix = _spool(len(self), int(lengths[0]), np.float16) if matrix is None else matrix
                    matrix[start + valid] = found.flatten().to_numpy(zero_copy_only=False).reshape(len(valid), -1)
        if matrix is None:
            raise ArtifactError(
                "The scores hold no embeddings", remedy="set prepare.embedding in the recipe and prepare again"
            )
        return matrix


def _chunks(column: pa.ChunkedArray, start: int) -> Iterator[tuple[Any, int]]:
    """The column's chunks with the position of the first sample of each."""
    for chunk in column.chunks:
        yield chunk, start
        start += len(chunk)


def _spool(rows: int, width: int, dtype: Any) -> Any:
    """A matrix of zeros in an unnamed temporary file: pages that are not in use need no memory."""
    if not rows:
        return np.zeros((0, width), dtype=dtype)
    with tempfile.TemporaryFile(prefix="atelier-scores-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=(rows, width))


def _input(url: str) -> Any:
    """What pyarrow reads from: a path, or the bytes of a remote file (never a Python file: its threads outlive it)."""
    fs, path = fsspec.core.url_to_fs(url)
    return str(Path(path)) if isinstance(fs, LocalFileSystem) else pa.BufferReader(fs.cat_file(path))


def _read(url: str, names: list[str]) -> pa.Table:
    return pq.ParquetFile(_input(url)).read(columns=names, use_threads=False)


def _numbers(column: pa.ChunkedArray, null: Any, dtype: Any) -> Any:
    return column.fill_null(null).to_numpy().astype(dtype, copy=False)


def _texts(column: pa.ChunkedArray) -> pa.LargeStringArray:
    return column.cast(pa.large_string()).combine_chunks()
