"""Latents encoded once: the moments of every picture, in a Ray Data job.

The work is cut into pieces of the dataset's rows before anybody knows how many workers there are, each piece is
computed in fp32 on one thread and becomes one file, so the bytes do not depend on the number of workers. Both
moments are kept, not one frozen draw: every epoch samples anew.

Rows: ``id``, ``split`` and, as little-endian fp16 ``channels x side x side``, ``mean`` and ``logvar``.
"""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.lib import ArrowInvalid

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Run
from components.runtime.cluster import ray_session
from components.runtime.progress import Progress
from components.runtime.storage import write_bytes
from components.training.samples import parts, pictures_of

LATENT_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("mean", pa.binary()), ("logvar", pa.binary())])
_BATCH = 64


def encode_table(model: Any, rows: Any, image_size: int) -> Any:
    """The latents table of dataset rows (``id, split, pixels, height, width``), in their order."""
    import torch

    pictures = pictures_of(rows, image_size)
    means, logvars = [], []
    with torch.inference_mode():
        for start in range(0, len(pictures), _BATCH):
            batch = torch.from_numpy(pictures[start : start + _BATCH]).permute(0, 3, 1, 2)
            moments = model.encoder(batch.to(next(model.parameters()).device).float().div(127.5).sub(1))
            mean, logvar = moments.cpu().chunk(2, dim=1)
            means += [m.tobytes() for m in mean.numpy().astype("<f2")]
            logvars += [v.tobytes() for v in logvar.clamp(-30.0, 20.0).numpy().astype("<f2")]
    moments = [pa.array(means, pa.binary()), pa.array(logvars, pa.binary())]
    return pa.Table.from_arrays([rows["id"], rows["split"], *moments], schema=LATENT_SCHEMA)


@lru_cache(maxsize=1)
def _model(folder: str) -> Any:
    """The autoencoder, loaded once a worker process."""
    import torch

    from components.models.autoencoder import load_autoencoder

    torch.set_num_threads(1)  # sums in one order, whatever the machine
    return load_autoencoder(Path(folder)).to("cuda" if torch.cuda.is_available() else "cpu")


def encode_piece(piece: dict[str, Any], autoencoder: str, image_size: int, target: str) -> dict[str, Any]:
    """Encode one file of the dataset (``path``) into one file of the artifact (``name``); runs in a Ray worker."""
    rows = pq.read_table(piece["path"], columns=["id", "split", "pixels", "height", "width"])
    buffer = io.BytesIO()
    pq.write_table(encode_table(_model(autoencoder), rows, image_size), buffer, compression="zstd")
    write_bytes(f"{target}/data/{piece['name']}", buffer.getvalue())
    return {"name": piece["name"], "rows": rows.num_rows}


def encode_dataset(dataset: Path, autoencoder: Path, target: str, folder: Path, image_size: int, run: Run) -> int:
    """Encode every row of a dataset; files already whole in ``folder`` (local form of ``target``) are kept.

    Returns:
        The number of rows.
    """
    pieces = [{"path": str(path), "name": path.name} for path in parts(dataset)]
    counts = {p["name"]: pq.read_metadata(p["path"]).num_rows for p in pieces}
    todo = [p for p in pieces if _rows(folder / "data" / p["name"]) != counts[p["name"]]]
    done: int = sum(counts.values()) - sum(counts[p["name"]] for p in todo)
    progress = Progress("encode", sum(counts.values()), "img", initial=done)
    if todo:
        with ray_session(run):
            import ray

            logging.getLogger("ray.data").setLevel(logging.ERROR)
            results = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
                encode_piece,
                fn_kwargs={"autoencoder": str(autoencoder), "image_size": image_size, "target": target},
                compute=ray.data.TaskPoolStrategy(size=run.workers),
                num_cpus=run.threads_per_worker,
                num_gpus=run.gpus_per_worker or None,
            )
            for result in results.iter_rows():
                done += int(result["rows"])
                progress.update(done)
    progress.close()
    return done


def _rows(path: Path) -> int | None:
    """Rows of a whole parquet file, None for one that is missing or damaged."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ArrowInvalid):
        return None


def scaling_of(mean: np.ndarray[Any, Any], logvar: np.ndarray[Any, Any]) -> float:
    """Factor that gives sampled latents unit variance (Rombach et al. 2022, sec. G), rounded to fp32."""
    variance = float(mean.astype(np.float64).var() + np.exp(logvar.astype(np.float64)).mean())
    if not 0 < variance < np.inf:
        raise ArtifactError(
            f"The latents have variance {variance}",
            expected="a positive number",
            remedy="train the autoencoder longer",
        )
    return float(np.float32(variance**-0.5))
