"""What extractors said of real pictures, kept on this machine by content: another judge does not look again.

A folder has one subfolder an extractor, by its digest, and in it files of arrays with the digests of the pictures that
their rows are of. The oldest files go when there are too many bytes. A file that was damaged is removed and said.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluation.extractor import Pictures, Rows
from components.runtime.progress import say
from components.runtime.storage import write_bytes

MOST_BYTES = 4 << 30  # of an extractor
Said = dict[str, dict[str, Rows]]  # digest of a picture: {what: row}


def content_of(picture: Pictures) -> str:
    """SHA-256 (hex) of a picture uint8 [H, W, 3], its shape included."""
    found = hashlib.sha256(repr(picture.shape).encode())
    found.update(np.ascontiguousarray(picture).tobytes())
    return found.hexdigest()


class FeatureCache:
    """The cache of one extractor, in ``folder / digest``."""

    def __init__(self, folder: Path, digest: str, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self._most = folder / digest[:32], most_bytes

    def contents(self) -> frozenset[str]:
        """Digests of all pictures that are known."""
        return frozenset(content for _, known, _ in self._opened() for content in known)

    def find(self, contents: Iterable[str]) -> Said:
        """What is known of these pictures."""
        wanted, found = set(contents), Said()
        for file, known, names in self._opened():
            if at := [i for i, content in enumerate(known) if content in wanted]:
                arrays = {name: file.get_tensor(name) for name in names}
                found |= {known[i]: {name: rows[i] for name, rows in arrays.items()} for i in at}
        return found

    def keep(self, contents: Sequence[str], arrays: Mapping[str, Rows]) -> None:
        """Remember what was said of these pictures, ``arrays`` having a row for each."""
        from safetensors.numpy import save

        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(contents).encode()).hexdigest()[:32]
        data = save(
            {key: np.ascontiguousarray(rows) for key, rows in arrays.items()},
            metadata={"contents": json.dumps(list(contents))},
        )
        write_bytes(str(self.folder / f"{name}.safetensors"), bytes(data))
        self._make_room()

    def _opened(self) -> Iterator[tuple[Any, list[str], list[str]]]:
        """Every file with the digests of its rows and the names of its arrays."""
        from safetensors import SafetensorError, safe_open

        for path in self._files():
            try:
                with safe_open(path, framework="np") as file:
                    yield file, json.loads(file.metadata()["contents"]), list(file.keys())
            except FileNotFoundError:  # another process made room
                continue
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                say(f"judge: {path} is damaged and removed ({str(error).splitlines()[0]}); its pictures are seen again")
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _make_room(self) -> None:
        sizes: dict[Path, os.stat_result] = {}
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat()
        total = sum(found.st_size for found in sizes.values())
        for path in sorted(sizes, key=lambda p: sizes[p].st_mtime)[:-1]:
            if total <= self._most:
                return
            path.unlink(missing_ok=True)
            total -= sizes[path].st_size
