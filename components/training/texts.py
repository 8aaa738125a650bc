"""The states of all captions under the text encoder, encoded once: the text side of the encode step.

On by ``train.encode_text``, for data sets whose captions cost more to read again in every training, on every rank,
than to keep: fp16 states of a whole prompt are ``max_tokens * width * 2`` bytes a row. Like the latents, rows are
named by what they were made from, and checked whenever they are read.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Run
from components.runtime.cluster import ray_session
from components.runtime.pieces import run_pieces
from components.runtime.progress import Progress
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes
from components.training.latents import mended_stage
from components.training.tokens import COLUMNS, all_tokens, token_rows

DTYPE = "<f2"
TEXT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("height", pa.int32()),  # of the row's picture, which decides its place among the samples
        ("width", pa.int32()),
        ("key", pa.binary(32)),  # SHA-256 of tokens, text encoder and dtype
        ("states", pa.binary()),  # DTYPE, captions x tokens x width: the row's own caption, then its alternatives
        ("checksum", pa.binary(32)),  # SHA-256 of all of the above
    ]
)
_BATCH = 64


@dataclass(frozen=True)
class Job:
    """What every piece is encoded with, and where its file goes."""

    text_encoder: str  # folder of the artifact, with ``model/`` and ``tokenizer/``
    digest: str  # of the artifact
    target: str  # URL of the text states artifact


def encode_texts(ctx: Context, dataset: Artifact, text_encoder: Artifact) -> Artifact:
    """The text encoder's last hidden states of every caption of the dataset: ``data/*.parquet``, ``TEXT_SCHEMA``."""

    def build(draft: Draft) -> Outcome:
        job = Job(str(text_encoder.local()), text_encoder.digest, draft.url)
        return Outcome(counts={"rows": _encode_all(dataset.local(), job, ctx.recipe.run)})

    inputs = {"dataset": dataset, "text_encoder": text_encoder}
    return mended_stage(ctx, "text_states", inputs, {"dtype": DTYPE}, build)


def load_states(texts: Path, length: int, split: str = "train", count: int | None = None) -> tuple[list[str], Any]:
    """Ids of a split's samples and states, fp16 ``[count, length, width]``, of all their captions, in the order of
    :class:`components.training.captions.Captions`.

    Args:
        length: tokens of a caption. count: captions of the split; as many as samples by default.

    Raises:
        ArtifactError: a row does not match its checksum, or there are not as many captions.
    """
    import torch

    from components.training.samples import by_size, sizes_of, table

    rows = table(texts, TEXT_SCHEMA.names, split)
    at = np.concatenate([places for _, places in by_size(sizes_of(rows))])
    rows = rows.take(at)
    for row in rows.to_pylist():
        if row["checksum"] != _checksum(row):
            raise ArtifactError(
                f"The text states of {row['id']} do not match their checksum",
                expected="the states that the encode step wrote",
                remedy="run the same command again; damaged parts are encoded anew",
            )
    flat = np.frombuffer(b"".join(value.as_py() for value in rows["states"]), np.float16)
    count = rows.num_rows if count is None else count
    width, left = divmod(flat.size, max(1, count * length))
    if left or (count and not width):
        raise ArtifactError(
            f"The text states in {texts} are not of {count} captions of {length} tokens",
            expected="the states of every caption of the dataset",
            remedy="delete the artifact of the text states and run the same command again; it is made anew",
        )
    return rows["id"].to_pylist(), torch.from_numpy(flat.reshape(count, length, width).copy())


def encode_piece(piece: dict[str, Any], job: Job) -> dict[str, Any]:
    """Encode the captions of one file of the dataset into one file of the artifact; runs in a Ray worker."""
    names = ["id", "split", "height", "width"]
    rows = pq.read_table(piece["path"], columns=[*names, *COLUMNS, "alternatives"])
    tokenizer = _tower(job.text_encoder)[1]
    tokens = token_rows(rows, tokenizer, Path(piece["path"]).parents[1])
    ids, counts = all_tokens(tokens, rows["alternatives"].to_pylist(), tokenizer)
    states, made, at = _states(job.text_encoder, ids), [], 0
    for row, count in zip(rows.select(names).to_pylist(), counts, strict=True):
        read = b"".join(np.array(caption, "<i4").tobytes() for caption in ids[at : at + count])
        row["key"] = hashlib.sha256(read + f" {job.digest} {DTYPE}".encode()).digest()
        row["states"] = b"".join(state.tobytes() for state in states[at : at + count])
        made.append({**row, "checksum": _checksum(row)})
        at += count
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(made, schema=TEXT_SCHEMA), out, compression="zstd")
    write_bytes(f"{job.target}/data/{piece['name']}", out.getvalue())
    return {"rows": rows.num_rows}


def _checksum(row: dict[str, Any]) -> bytes:
    head = f"{row['id']} {row['split']} {row['height']}x{row['width']} ".encode()
    return hashlib.sha256(head + row["key"] + row["states"]).digest()


@lru_cache(maxsize=1)
def _tower(folder: str) -> tuple[Any, Any]:
    """Text tower and tokenizer, loaded once a worker process."""
    import torch

    from components.models.text_encoder import load_text_tower, load_tokenizer

    torch.set_num_threads(1)  # sums in one order, whatever the machine
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_text_tower(Path(folder) / "model").to(device), load_tokenizer(Path(folder) / "tokenizer")


def _states(folder: str, tokens: list[list[int]]) -> list[Any]:
    """States of every row, in batches of one shape: a row's bytes do not depend on its neighbours."""
    import torch

    from components.models.text_encoder import pad_tokens, text_states

    tower, tokenizer = _tower(folder)
    ids = pad_tokens(tokens, tokenizer.model_max_length, tokenizer.pad_token_id, tokenizer.eos_token_id)
    device, found = next(tower.parameters()).device, []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        full = torch.cat([batch, batch[:1].expand(_BATCH - len(batch), -1)])
        states = text_states(tower, full.to(device), _BATCH, tokenizer.eos_token_id)
        found += list(states[: len(batch)].cpu().numpy().astype(DTYPE))
    return found


def _encode_all(dataset: Path, job: Job, run: Run) -> int:
    """Encode every file of the dataset; returns the number of rows."""
    from components.training.samples import parts

    pieces = [{"path": str(path), "name": path.name} for path in parts(dataset)]
    progress = Progress("encode texts", sum(pq.read_metadata(piece["path"]).num_rows for piece in pieces), "captions")
    done = 0
    with ray_session(run):
        for result in run_pieces(pieces, partial(encode_piece, job=job), run, run.workers, as_worker=True):
            done += int(result["rows"])
            progress.update(done)
    progress.close()
    return done
