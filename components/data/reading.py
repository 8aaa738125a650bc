"""Pictures from files instead of the web: what :class:`~components.data.fetching.Fetcher` is for URLs."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data import tars
from components.data.fetching import Answer
from components.data.folders import is_local, place_of
from components.data.guard import Refusal

_OPEN_TARS = 4


@dataclass
class FileReader:
    """Reads pictures below one root; one object serves all threads of one task.

    Nothing outside of the root is read: neither by ``..`` nor, on this machine, by a link. Members of tars are
    read in place, so that their names lead nowhere.

    Args:
        limits: the recipe's ``collect`` section; ``max_bytes`` counts.
        root: the folder that every URL must lie below, or one tar: ``collect.files`` of the recipe.
    """

    limits: Collect
    root: str
    _tars: OrderedDict[str, tars.Tar] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, url: str) -> Answer:
        """The bytes of the picture at ``url``, as :func:`components.data.folders.read_folder` lists it.

        Raises:
            Refusal: ``MISSING_FILE``, ``REFUSED_SCHEME`` (not below the root, or not a plain file),
                ``TOO_MANY_BYTES``, ``TRUNCATED`` (a tar that ends early), ``NOT_AN_IMAGE`` (a tar without pictures)
                or ``CONNECTION`` (the storage failed).
        """
        try:
            return Answer(self._read(url), None, 1, None)
        except Refusal as refusal:
            refusal.attempts = 1
            raise

    def close(self) -> None:
        """Let go of the tars that are open."""
        with self._lock:
            self._tars.clear()

    def _read(self, url: str) -> bytes:
        place, sign, member = url.partition("#")
        fs, path = self._place[0], self._path(place)
        try:
            if place.lower().endswith(tars.ENDINGS):
                return self._of_tar(fs.unstrip_protocol(path), unquote(member) if sign else None)
            with fs.open(path, "rb") as file:
                body = bytes(file.read(self.limits.max_bytes + 1))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise Refusal(CollectReason.MISSING_FILE, "there is no such file") from error
        except tars.TooLarge as error:
            raise Refusal(CollectReason.TOO_MANY_BYTES, f"the packed tar: {error}") from error
        except OSError as error:
            raise Refusal(
                CollectReason.CONNECTION, f"reading failed: {error.strerror or type(error).__name__}"
            ) from error
        if len(body) > self.limits.max_bytes:
            raise Refusal(CollectReason.TOO_MANY_BYTES, f"more than {self.limits.max_bytes} bytes")
        return body

    def _path(self, place: str) -> str:
        """The file's path in its filesystem, found to be below the root."""
        fs, folder, alone = self._place
        base = f"{fs.unstrip_protocol(folder)}/"
        name = unquote(place.removeprefix(base))
        if not place.startswith(base) or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise Refusal(CollectReason.REFUSED_SCHEME, "not below the folder that the recipe names")
        path = f"{folder}/{name}"
        if alone not in (None, path):
            raise Refusal(CollectReason.REFUSED_SCHEME, "not the tar that the recipe names")
        if is_local(fs):
            real = Path(path).resolve()
            if not real.is_relative_to(Path(folder).resolve()):
                raise Refusal(CollectReason.REFUSED_SCHEME, "a link that leads out of the folder")
            if real.exists() and not real.is_file():
                raise Refusal(CollectReason.REFUSED_SCHEME, "not a plain file")
        return path

    @functools.cached_property
    def _place(self) -> tuple[Any, str, str | None]:
        return place_of(self.root)

    def _tar(self, url: str) -> tars.Tar:
        with self._lock:  # the first thread opens it, the others wait
            tar = self._tars.pop(url, None) or tars.open_tar(url)
            self._tars[url] = tar
            if len(self._tars) > _OPEN_TARS:
                self._tars.popitem(last=False)  # closed when the last thread that reads it is done
            return tar

    def _of_tar(self, url: str, name: str | None) -> bytes:
        tar = self._tar(url)
        if name is None:
            if tar.whole:
                raise Refusal(CollectReason.NOT_AN_IMAGE, "the tar has no pictures")
            raise Refusal(CollectReason.TRUNCATED, "the tar ends early or is damaged: what came after is lost")
        member = tar.members.get(name)
        if member is None:
            raise Refusal(CollectReason.MISSING_FILE, "there is no such file in the tar")
        if not member.regular or name.startswith("/") or ".." in name.split("/"):
            raise Refusal(CollectReason.REFUSED_SCHEME, "a link or a path that leads out of the tar")
        if member.size > self.limits.max_bytes:
            raise Refusal(CollectReason.TOO_MANY_BYTES, f"{member.size} bytes, at most {self.limits.max_bytes}")
        body = tar.read(member, member.size)
        if len(body) < member.size:
            raise Refusal(CollectReason.TRUNCATED, f"the tar ends after {len(body)} of its {member.size} bytes")
        return body
