"""A parquet file's ``bytes`` column as a website: one path a row, read a row group at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts.errors import InputError
from components.data.site_pages import Page, write_rows

_GROUPS_IN_MEMORY = 4
_KINDS = {
    b"\x89PNG": ("png", "image/png"),
    b"\xff\xd8\xff": ("jpg", "image/jpeg"),
    b"GIF8": ("gif", "image/gif"),
    b"RIFF": ("webp", "image/webp"),
    b"BM": ("bmp", "image/bmp"),
}


class ParquetSite:
    """Serves ``/{prefix}/{row}.{png|jpg|...}``, the ending by the file's first bytes.

    Args:
        path: parquet file with a binary column ``bytes``.
        caption_column: column of captions for the URL list.
        prefix: first part of every path.
        limit: serve and list only the first rows.

    Raises ``InputError`` for an unreadable file or a missing column.
    """

    def __init__(
        self, path: str | Path, caption_column: str = "caption", prefix: str = "img", limit: int | None = None
    ) -> None:
        self.prefix = prefix
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{path} cannot be read as parquet: {error}",
                expected="a parquet file with a binary column named bytes",
                remedy="check the path, or write the file again",
            ) from error
        names = self._file.schema_arrow.names
        for column in ("bytes", caption_column):
            if column not in names:
                raise InputError(
                    f"{path} has no column {column!r}; it has {', '.join(names)}",
                    expected="the columns 'bytes' (image files) and the captions' one",
                    remedy="name another caption column, or rename the column in the file",
                )
        self._caption_column = caption_column
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        total = int(self._starts[-1])
        self.rows = total if limit is None else min(limit, total)
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, path: str) -> Page | None:
        name = path.removeprefix(f"/{self.prefix}/").partition(".")
        if not name[0].isascii() or not name[0].isdigit() or int(name[0]) >= self.rows:
            return None
        data = self._bytes(int(name[0]))
        ending, content_type = _kind(data)
        return Page(data, content_type) if data and ending == name[2] else None

    def disallowed(self) -> Sequence[str]:
        return ()

    def list_rows(self, base_url: str) -> list[dict[str, Any]]:
        """The URL list: ``url`` and ``caption``, in the file's order (reads the whole file once)."""
        base = base_url.rstrip("/")
        rows: list[dict[str, Any]] = []
        for batch in self._file.iter_batches(batch_size=512, columns=["bytes", self._caption_column]):
            captions = batch.column(self._caption_column).to_pylist()
            for data, caption in zip(batch.column("bytes"), captions, strict=True):
                if len(rows) == self.rows:
                    return rows
                head = b"" if not data.is_valid else data.as_buffer().slice(0, 4).to_pybytes()
                text = caption if caption is None else str(caption)
                rows.append({"url": f"{base}/{self.prefix}/{len(rows)}.{_kind(head)[0]}", "caption": text})
        return rows

    def write_list(self, path: str | Path, base_url: str) -> Path:
        return write_rows(path, self.list_rows(base_url))

    def _bytes(self, row: int) -> bytes:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:  # a parquet reader is not for several threads
            if group not in self._groups:
                self._groups[group] = self._file.read_row_group(group, columns=["bytes"]).column("bytes")
                if len(self._groups) > _GROUPS_IN_MEMORY:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            value = self._groups[group][row - int(self._starts[group])].as_py()
        return bytes(value or b"")


def _kind(data: bytes) -> tuple[str, str]:
    for magic, kind in _KINDS.items():
        if data.startswith(magic):
            return kind
    return "bin", "application/octet-stream"
