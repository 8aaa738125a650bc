"""What a loopback website serves and knows: pages, rows of its URL list, and the truth of every row."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from components.contracts.errors import InputError


@dataclass(frozen=True)
class Page:
    """One answer of the website, faults included."""

    body: bytes = b""
    content_type: str = "image/jpeg"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    fail_first: tuple[int, ...] = ()  # statuses of the first answers to this URL, before it heals
    stall_s: float = 0.0  # silence before the headers
    drip_s: float = 0.0  # the body is spread over this time
    announced: int | None = None  # Content-Length, when it is not the body's
    zeros: int = 0  # bytes sent after the body, made on the way
    hang_up: bool = False  # the connection is closed without an answer


@dataclass(frozen=True)
class SiteRow:
    """One row of the URL list and what must become of it.

    ``target`` is a path of this site (starting with ``/``) or a whole URL. ``outcome`` is ``kept``,
    ``collect_failed`` or ``prepare_dropped``; ``reason`` is a word of ``CollectReason`` or ``DropReason``,
    ``None`` when kept. ``original`` is the row that a copy repeats. ``kind`` says how the row was made.
    """

    target: str
    caption: str
    outcome: str = "kept"
    reason: str | None = None
    original: str | None = None
    kind: str = "plain"


class Pages(Protocol):
    """A source of pages; several can share one server as long as their prefixes differ."""

    @property
    def prefix(self) -> str: ...

    def page(self, path: str) -> Page | None:
        """The page at this path (with its leading slash), ``None`` where there is none."""

    def disallowed(self) -> Sequence[str]:
        """Paths for robots.txt to disallow."""

    def list_rows(self, base_url: str) -> list[dict[str, Any]]:
        """The URL list: rows of ``url`` and ``caption``."""


def absolute(target: str, base_url: str) -> str:
    return base_url.rstrip("/") + target if target.startswith("/") else target


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as parquet, csv or jsonl, by the file's suffix; equal rows give equal bytes.

    Raises ``InputError`` for another suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0]) if rows else ["url", "caption"]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(name, pa.string()) for name in names])
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
    else:
        raise InputError(
            f"The URL list cannot be written to {path}",
            expected="a file name ending in .parquet, .csv or .jsonl",
            remedy="give the file one of these endings",
        )
    return path
