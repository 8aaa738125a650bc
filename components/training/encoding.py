"""Latents encoded once: the moments of every picture, in a Ray Data job.

The work is cut into pieces of the dataset's rows before anybody knows how many workers there are, each piece is
computed in fp32 on one thread, in batches of one fixed shape, and becomes one file: the bytes do not depend on the
number of workers, nor a row's on its neighbours. Both moments are kept, not one frozen draw: every epoch samples
anew. Rows are ``LATENT_SCHEMA`` of :mod:`components.training.moments`; one whose key is known from an earlier
encoding is taken from there.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Run
from components.runtime.cluster import ray_session
from components.runtime.pieces import run_pieces
from components.runtime.progress import Progress
from components.runtime.storage import write_bytes
from components.training.moments import DTYPE, LATENT_SCHEMA, checksum_of, damaged_row, key_of
from components.training.samples import by_size, parts, pictures_at, sizes_of

_BATCH = 64
_COLUMNS = ["id", "split", "pixels", "height", "width"]
Moments = tuple[bytes, bytes]


@dataclass(frozen=True)
class Job:
    """What every piece is encoded with, and where its file goes."""

    autoencoder: str  # model folder
    digest: str  # of the autoencoder's artifact
    target: str  # URL of the latents artifact
    known: tuple[str, ...] = ()  # files of earlier encodings with the same autoencoder


@dataclass
class Spread:
    """Count, mean and squared deviations of the latents' means, and the sum of their variances (Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    variances: float = 0.0

    @classmethod
    def of(cls, rows: pa.Table) -> Spread:
        """Over the training rows of a latents table."""
        total = cls()
        for row in rows.filter(pc.equal(rows["split"], "train")).select(["mean", "logvar"]).to_pylist():
            mean, logvar = (np.frombuffer(row[name], DTYPE).astype(np.float64) for name in ("mean", "logvar"))
            centre = float(mean.mean())
            total.add(cls(mean.size, centre, float(((mean - centre) ** 2).sum()), float(np.exp(logvar).sum())))
        return total

    def add(self, other: Spread) -> None:
        """Take in the numbers of other rows."""
        count = self.count + other.count
        if other.count:
            apart = other.mean - self.mean
            self.squares += other.squares + apart**2 * self.count * other.count / count
            self.mean += apart * other.count / count
            self.count, self.variances = count, self.variances + other.variances

    @property
    def scaling(self) -> float:
        """Factor that gives sampled latents unit variance (Rombach et al. 2022, sec. G), rounded to fp32."""
        variance = (self.squares + self.variances) / self.count if self.count else 0.0
        if not 0 < variance < np.inf:
            raise ArtifactError(
                f"The latents have variance {variance}",
                expected="a positive number",
                remedy="train the autoencoder longer",
            )
        return float(np.float32(variance**-0.5))


def encode_table(model: Any, rows: pa.Table, keys: Sequence[bytes], known: dict[int, Moments]) -> pa.Table:
    """The latents table of dataset rows (``id, split, pixels, height, width``), in their order.

    Args:
        keys: of the rows. known: moments that need not be computed, by the position of the row.
    """
    from components.models.autoencoder import factor_of

    moments, sizes = dict(known), sizes_of(rows)
    for size, at in by_size(sizes):
        missing = np.array([i for i in at if int(i) not in known], np.int64)
        for start in range(0, len(missing), _BATCH):
            chosen = missing[start : start + _BATCH]
            moments |= zip(chosen.tolist(), _encode(model, pictures_at(rows, chosen, size)), strict=True)
    made = []
    factor = factor_of(model)
    for i, (name, split) in enumerate(zip(rows["id"].to_pylist(), rows["split"].to_pylist(), strict=True)):
        grid = {"height": int(sizes[i, 0]) // factor, "width": int(sizes[i, 1]) // factor}
        row = {"id": name, "split": split, **grid, "key": keys[i], "mean": moments[i][0], "logvar": moments[i][1]}
        made.append({**row, "checksum": checksum_of(row)})
    return pa.Table.from_pylist(made, schema=LATENT_SCHEMA)


def _encode(model: Any, pictures: Any) -> list[Moments]:
    """Mean and log-variance of at most a batch of pictures of one size."""
    import torch

    from components.models.autoencoder import encode_moments

    full = np.concatenate([pictures, np.zeros((_BATCH - len(pictures), *pictures.shape[1:]), np.uint8)])
    with torch.inference_mode():
        batch = torch.from_numpy(full).permute(0, 3, 1, 2)
        pixels = batch.to(next(model.parameters()).device).float().div(127.5).sub(1)
        mean, logvar = (part[: len(pictures)].cpu().numpy() for part in encode_moments(model, pixels))
    means, logvars = mean.astype(DTYPE), logvar.astype(DTYPE)
    return [(m.tobytes(), v.tobytes()) for m, v in zip(means, logvars, strict=True)]


@lru_cache(maxsize=1)
def _model(folder: str) -> Any:
    """The autoencoder, loaded once a worker process."""
    import torch

    from components.models.autoencoder import load_autoencoder

    torch.set_num_threads(1)  # sums in one order, whatever the machine
    return load_autoencoder(Path(folder)).to("cuda" if torch.cuda.is_available() else "cpu")


def encode_piece(piece: dict[str, Any], job: Job) -> dict[str, Any]:
    """Encode one file of the dataset (``path``) into one file of the artifact (``name``); runs in a Ray worker.

    A file that a killed run left is kept if it is what would be written now, to the byte.
    """
    rows, target = pq.read_table(piece["path"], columns=_COLUMNS), f"{job.target}/data/{piece['name']}"
    sizes = sizes_of(rows).tolist()
    keys = [key_of(rows["pixels"][i].as_buffer(), h, w, job.digest) for i, (h, w) in enumerate(sizes)]
    made, reused = _left(target, rows, keys), rows.num_rows
    if made is None:
        known = find_known(keys, job.known)
        made, reused = encode_table(_model(job.autoencoder), rows, keys, known), len(known)
        write_bytes(target, _bytes(made))
    return {"name": piece["name"], "rows": rows.num_rows, "reused": reused, "spread": vars(Spread.of(made))}


def _bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _left(url: str, rows: pa.Table, keys: Sequence[bytes]) -> pa.Table | None:
    """The table in a file that is whole and of these rows, else None."""
    fs, path = fsspec.core.url_to_fs(url)
    try:
        data = fs.cat_file(path)
    except FileNotFoundError:
        return None
    table = _table(data)
    if table is None or table["key"].to_pylist() != list(keys):
        return None
    same = all(table[name].to_pylist() == rows[name].to_pylist() for name in ("id", "split"))
    return table if same and _bytes(table) == data else None


def _table(data: bytes) -> pa.Table | None:
    """A latents table from a file's bytes, None if they are damaged."""
    try:
        table = pq.read_table(pa.BufferReader(data))
        table = table.cast(LATENT_SCHEMA) if table.schema.names == LATENT_SCHEMA.names else None
        return table if table is not None and damaged_row(table) is None else None
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return None


def find_known(keys: Sequence[bytes], files: Sequence[str]) -> dict[int, Moments]:
    """Moments of earlier encodings, by the position of their key; rows with a wrong checksum are not taken."""
    found: dict[int, Moments] = {}
    wanted = pa.array(keys, pa.binary(32))
    for file in files:
        places = pc.index_in(wanted, value_set=pq.read_table(file, columns=["key"])["key"].combine_chunks())
        hits = [i for i, place in enumerate(places.to_pylist()) if place is not None and i not in found]
        if hits:
            for i, row in zip(hits, pq.read_table(file).take(places.take(hits)).to_pylist(), strict=True):
                if row["checksum"] == checksum_of(row):
                    found[i] = row["mean"], row["logvar"]
    return found


def encode_dataset(dataset: Path, job: Job, run: Run) -> tuple[int, int, Spread]:
    """Encode every row of a dataset; whole files of a killed run are kept.

    Returns:
        The number of rows, how many of them were known before, and the spread of the training rows.
    """
    pieces = [{"path": str(path), "name": path.name} for path in parts(dataset)]
    total = sum(pq.read_metadata(piece["path"]).num_rows for piece in pieces)
    progress, done, results = Progress("encode", total, "img"), 0, list[dict[str, Any]]()
    with ray_session(run):
        for result in run_pieces(pieces, partial(encode_piece, job=job), run, run.workers, as_worker=True):
            results.append(result)
            done += int(result["rows"])
            progress.update(done)
    progress.close()
    spread = Spread()
    for result in sorted(results, key=lambda r: str(r["name"])):  # sums in one order, whoever was first
        spread.add(Spread(**result["spread"]))
    return done, sum(int(r["reused"]) for r in results), spread
