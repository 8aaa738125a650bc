"""Rows of encoded pictures: named by what they were made from, and checked whenever they are read."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

TRANSFORM = "rgb8 / 127.5 - 1"
DTYPE = "<f2"

LATENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("height", pa.int32()),  # of the grid
        ("width", pa.int32()),
        ("key", pa.binary(32)),  # see key_of
        ("mean", pa.binary()),  # DTYPE, channels x height x width
        ("logvar", pa.binary()),
        ("checksum", pa.binary(32)),  # SHA-256 of all of the above
    ]
)


def key_of(pixels: Any, height: int, width: int, autoencoder: str) -> bytes:
    """SHA-256 that names the moments of a picture: of its digest, the transform, the autoencoder's digest, the dtype.

    Args:
        pixels: uint8 RGB, row major, as a buffer. autoencoder: digest of the artifact.
    """
    picture = hashlib.sha256(pixels).hexdigest()
    return hashlib.sha256(f"{picture} {width}x{height} {TRANSFORM} {autoencoder} {DTYPE}".encode()).digest()


def checksum_of(row: dict[str, Any]) -> bytes:
    """The checksum that a row must have."""
    head = f"{row['id']} {row['split']} {row['height']}x{row['width']} ".encode()
    return hashlib.sha256(head + row["key"] + row["mean"] + row["logvar"]).digest()


def damaged_row(rows: pa.Table) -> int | None:
    """The first row of a latents table whose checksum is wrong, None if all are right."""
    at = 0
    for batch in rows.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if row["checksum"] != checksum_of(row):
                return at
            at += 1
    return None
