"""What a picture's file tells of its origin: its metadata, its watermark, and whether the logbook knows it."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from serving.logbook import read_logbook
from serving.provenance import DIGITAL_SOURCE_TYPE, read_pixels, read_provenance
from serving.secret import FILE as SECRET
from serving.watermark import Watermark, payload_of

_SHOWN = ("request_id", "time", "model_version", "seed", "style", "key_id")


@dataclass(frozen=True)
class Finding:
    """What was found in one file.

    Args:
        sha256: of the file. metadata: as :func:`serving.provenance.read_provenance` gives it.
        marked: whether the pixels carry a watermark of this home; None where it has no secret to read one with.
        served: the logbook's row of exactly this file, {} where there is none.
        requests: rows of requests that the watermark stands for, one each.
        logbook: how many rows it has.
    """

    sha256: str
    size: tuple[int, int]
    metadata: dict[str, str] = field(default_factory=dict)
    marked: bool | None = None
    served: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    logbook: int = 0

    @property
    def ours(self) -> bool:
        """Whether it was drawn here for sure: metadata alone proves nothing, anybody can write it."""
        return bool(self.served or self.marked)


def verify(data: bytes, home: Path) -> Finding:
    """Look at the file ``data``, a PNG, JPEG or WebP, with the secret and the logbook of ``home``.

    Raises:
        InputError: it is no such file, or the home's secret is damaged.
    """
    metadata, pixels = read_provenance(data), read_pixels(data)
    sha256 = hashlib.sha256(data).hexdigest()
    payload = marked = None
    if (home / SECRET).exists():
        payload = Watermark.of(home).read(pixels)
        marked = payload is not None
    rows = read_logbook(home / "logbook")
    served = _shown(rows.filter(pc.equal(rows["image_sha256"], sha256)))
    requests = []
    if payload is not None:
        ids = pc.unique(rows["request_id"].drop_null()).to_pylist()
        wanted = [name for name in ids if payload_of(name) == payload]
        for name in wanted:
            requests += _shown(rows.filter(pc.equal(rows["request_id"], name)))[:1]
    size = (pixels.shape[1], pixels.shape[0])
    return Finding(sha256, size, metadata, marked, served[0] if served else {}, requests, rows.num_rows)


def as_lines(found: Finding) -> list[str]:
    """The finding for people."""
    lines = [f"picture    {found.size[0]} x {found.size[1]}, sha256 {found.sha256}"]
    if found.metadata:
        said = "; ".join(f"{name} {value}" for name, value in found.metadata.items() if name != "digitalSourceType")
        drawn = found.metadata.get("digitalSourceType") == DIGITAL_SOURCE_TYPE
        lines.append(f"metadata   {'made by a trained model; ' if drawn else ''}{said} (anybody can write this)")
    else:
        lines.append("metadata   says nothing of its origin")
    if found.marked is None:
        lines.append("watermark  cannot be read: this home has no secret")
    elif found.marked and not found.requests:
        lines.append("watermark  of this home; the logbook no longer holds its request")
    elif found.marked:
        lines += [f"watermark  of this home, {_words(row)}" for row in found.requests]
    else:
        lines.append("watermark  none of this home was found")
    if found.served:
        lines.append(f"logbook    this very file was sent: {_words(found.served)}")
    else:
        lines.append(f"logbook    none of its {found.logbook} rows is of this very file")
    verdict = "drawn here" if found.ours else "not shown to be drawn here"
    return [*lines, f"verdict    {verdict}"]


def _shown(rows: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rows.select(list(_SHOWN)).to_pylist()
    return found


def _words(row: dict[str, Any]) -> str:
    time = row["time"]
    when = time.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if time else "unknown time"
    return f"request {row['request_id']} of {when}, version {row['model_version']}, seed {row['seed']}"
