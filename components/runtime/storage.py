"""The artifact store: folders on any fsspec URL, whole when their ``manifest.json`` is there.

Layout: ``{store}/{kind}/{first 16 hex digits of the identity}/``. Files are written first, each atomically;
``manifest.json`` comes last. A folder without a manifest is work in progress: the same stage run again
continues in it, and nobody else reads it.
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import ValidationError

from components.contracts.errors import ArtifactError, StoreFullError
from components.contracts.manifest import MANIFEST_NAME, FileRecord, Manifest, digest_of, identity_of

_CHUNK = 1 << 20
_STATE = "_state"  # what a stage keeps to resume; removed when the manifest is written


def write_bytes(url: str, data: bytes) -> None:
    """Write ``data`` at ``url`` (any fsspec URL or path) so that a reader sees all of it or nothing.

    Raises:
        StoreFullError: no room is left.
    """
    write_chunks(url, (data,))


def write_chunks(url: str, chunks: Iterable[bytes], sync: bool = True) -> int:
    """:func:`write_bytes` of what ``chunks`` gives piece by piece, so that no more than a piece need be in memory.

    Args:
        sync: wait until a local disk has it; else see :func:`sync_file`.

    Returns:
        The bytes written.
    """
    with full_store_explained(url):
        fs, path = fsspec.core.url_to_fs(url)
        local = isinstance(fs, LocalFileSystem)
        target = Path(path)
        if local:
            target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent if local else None)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(chunks)
                file.flush()
                size = file.tell()
                if local and sync:
                    os.fsync(file.fileno())
            if local:
                os.chmod(name, 0o644)
                os.replace(name, target)
            else:
                fs.makedirs(fs._parent(path), exist_ok=True)
                fs.put_file(name, path)  # object stores publish a whole object or none
        finally:
            Path(name).unlink(missing_ok=True)
    return size


def sync_file(url: str) -> None:
    """Wait until a file that was written without it is on the local disk; object stores have no need of it."""
    fs, path = fsspec.core.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        with full_store_explained(url):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def full_store_explained(where: str) -> Iterator[None]:
    """Turn "no space left" from any library inside the block into :class:`StoreFullError`."""
    try:
        yield
    except Exception as error:
        if _is_full(error):
            raise StoreFullError(
                f"No room is left to write {where}",
                expected="free space in the store",
                remedy="free some space or choose another store with --set run.root=PATH, "
                "then run the same command again: finished artifacts are whole",
            ) from error
        raise


def _is_full(error: BaseException | None) -> bool:
    seen: set[int] = set()  # chains may be rings: the cause of a failed Ray task has the task's error as its context
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return False


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its URL and its manifest. Small and picklable; files are fetched on use."""

    url: str
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Digest of the content (SHA-256, hex)."""
        return self.manifest.digest

    @property
    def short(self) -> str:
        """The kind and the first 12 digits of the digest, for people."""
        return f"{self.manifest.kind}:{self.digest[:12]}"

    def local(self) -> Path:
        """The artifact as a local folder. From a remote store it is fetched once into a cache, verified."""
        fs, path = fsspec.core.url_to_fs(self.url)
        if isinstance(fs, LocalFileSystem):
            return Path(path)
        cache = cache_root() / self.digest
        if not (cache / MANIFEST_NAME).exists():
            staging = Path(tempfile.mkdtemp(prefix=f"{self.digest[:12]}-", dir=_made(cache.parent)))
            for name in self.manifest.files:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(f"{path}/{name}", str(staging / name))
            (staging / MANIFEST_NAME).write_text(self.manifest.model_dump_json(indent=2))
            Artifact(str(staging), self.manifest).verify()
            with contextlib.suppress(OSError):  # another process was first: its copy is as good
                os.replace(staging, cache)
            shutil.rmtree(staging, ignore_errors=True)
        return cache

    def path(self, name: str) -> Path:
        """Local path of the file ``name`` of this artifact.

        Raises:
            ArtifactError: the manifest does not name such a file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.short} holds no file {name!r}", expected=", ".join(self.manifest.files))
        return self.local() / name

    def paths(self, prefix: str) -> list[Path]:
        """Local paths of all files whose name starts with ``prefix``, sorted by name."""
        root = self.local()
        return [root / name for name in sorted(self.manifest.files) if name.startswith(prefix)]

    def verify(self, prefix: str = "") -> None:
        """Read every file whose name starts with ``prefix`` and compare size and checksum with the manifest.

        Raises:
            ArtifactError: a file is missing or differs; the message names it.
        """
        fs, path = fsspec.core.url_to_fs(self.url)
        for name, record in self.manifest.files.items():
            if not name.startswith(prefix):
                continue
            try:
                found = record_of(fs, f"{path}/{name}")
            except FileNotFoundError:
                found = None
            if found != record:
                raise ArtifactError(
                    f"File {name!r} of {self.short} is {'missing' if found is None else 'damaged'} in {self.url}",
                    expected=f"{record.size} bytes with sha256 {record.sha256[:16]}…",
                    remedy="delete that folder and run the same command again; it is made anew from its inputs",
                )


@dataclass
class Outcome:
    """What a stage says of the artifact it has just filled; see :class:`Manifest` for the fields."""

    counts: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    circumstance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """An artifact being made. Write files under ``dir`` (local) or ``url`` (any worker, any node)."""

    kind: str
    identity: str
    inputs: dict[str, str]
    config: dict[str, Any]
    url: str
    dir: Path

    @property
    def state(self) -> Path:
        """Local folder for what a killed stage needs to go on; it does not become part of the artifact."""
        return _made(self.dir / _STATE)

    def commit(self, outcome: Outcome, replaces: Artifact | None = None) -> Artifact:
        """Checksum every file, write the manifest last, and return the finished artifact.

        The digests and revisions of an artifact that it ``replaces`` are taken over.
        """
        fs, path = fsspec.core.url_to_fs(self.url)
        with full_store_explained(self.url):
            shutil.rmtree(self.dir / _STATE, ignore_errors=True)
            if not isinstance(fs, LocalFileSystem):
                for local in sorted(p for p in self.dir.rglob("*") if p.is_file()):
                    fs.makedirs(fs._parent(f"{path}/{local.relative_to(self.dir)}"), exist_ok=True)
                    fs.put_file(str(local), f"{path}/{local.relative_to(self.dir).as_posix()}")
            names = sorted(p[len(path) :].lstrip("/") for p in cast(list[str], fs.find(path)))
            stray = [n for n in names if n.rpartition("/")[2].startswith(".tmp-")]
            for name in stray:  # half-written leftovers of a killed writer
                fs.rm_file(f"{path}/{name}")
            content = [n for n in names if n not in stray and n != MANIFEST_NAME]
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # checksums let other threads run
                records = pool.map(lambda name: record_of(fs, f"{path}/{name}"), content)
                files = dict(zip(content, records, strict=True))
            digest = digest_of(self.kind, files)
            known = (*replaces.manifest.earlier, replaces.digest) if replaces else ()
            manifest = Manifest(
                kind=self.kind,
                identity=self.identity,
                digest=digest,
                earlier=tuple(dict.fromkeys(d for d in known if d != digest)),
                revisions=replaces.manifest.revisions if replaces else (),
                inputs=self.inputs,
                config=self.config,
                files=files,
                created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **vars(outcome),
            )
            write_bytes(f"{self.url}/{MANIFEST_NAME}", manifest.model_dump_json(indent=2).encode())
        if not isinstance(fs, LocalFileSystem):
            shutil.rmtree(self.dir, ignore_errors=True)
        return Artifact(self.url, manifest)


class Store:
    """Artifacts under one fsspec URL or local path."""

    def __init__(self, url: str) -> None:
        fs, path = fsspec.core.url_to_fs(url)
        self._fs = fs
        self._local = isinstance(fs, LocalFileSystem)
        self.url = path if self._local else url.rstrip("/")

    def find(self, kind: str, identity: str) -> Artifact | None:
        """The finished artifact of that identity, or None. Its files are not read: see ``verify``."""
        return self._read(f"{self.url}/{kind}/{identity[:16]}")

    def by_digest(self, kind: str, digest: str) -> Artifact:
        """The artifact with that content digest, now or before a revision, or a unique beginning of it.

        Raises:
            ArtifactError: none, or more than one.
        """
        found = self.list(kind)
        hits = [a for a in found if a.digest.startswith(digest)]
        hits = hits or [a for a in found if any(d.startswith(digest) for d in a.manifest.earlier)]
        if len({a.digest for a in hits}) != 1:
            raise ArtifactError(
                f"{len(hits)} artifacts of kind {kind} begin with {digest[:16]!r} in {self.url}",
                expected="exactly one",
                remedy="see `atelier status` for what the store holds",
            )
        return hits[0]

    def list(self, kind: str | None = None) -> list[Artifact]:
        """All finished artifacts (of one kind), oldest first."""
        _, root = fsspec.core.url_to_fs(self.url)
        pattern = f"{root}/{kind or '*'}/*/{MANIFEST_NAME}"
        found = [self._read(self._prefix(root) + p.rpartition("/")[0]) for p in cast(list[str], self._fs.glob(pattern))]
        return sorted((a for a in found if a), key=lambda a: (a.manifest.created_at, a.url))

    def unfinished(self) -> builtins.list[str]:
        """URLs of the folders without a manifest: work that is under way or was killed, of any kind.

        Of a remote store also the local drafts, which may be of other stores.
        """
        _, root = fsspec.core.url_to_fs(self.url)
        self._fs.invalidate_cache(root)
        found = cast(list[str], self._fs.glob(f"{root}/*/*"))
        begun = [p for p in found if self._fs.isdir(p) and not self._fs.exists(f"{p}/{MANIFEST_NAME}")]
        drafts = [] if self._local else sorted(_remote_drafts().glob("*"))
        return [self._prefix(root) + p for p in begun] + [str(p) for p in drafts]

    def draft(self, kind: str, inputs: Mapping[str, Artifact], config: Mapping[str, Any]) -> Draft:
        """A draft for this kind, inputs and config; work that was begun and killed is found in it."""
        digests = {role: artifact.digest for role, artifact in inputs.items()}
        identity = identity_of(kind, digests, config)
        url = f"{self.url}/{kind}/{identity[:16]}"
        folder = Path(url) if self._local else _remote_drafts() / f"{kind}-{identity[:16]}"
        with full_store_explained(url):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (PermissionError, FileExistsError, NotADirectoryError) as error:
                raise ArtifactError(
                    f"The store {self.url} cannot be written: {error}",
                    remedy="choose a folder you may write to with --set run.root=PATH",
                ) from error
        return Draft(kind, identity, digests, dict(config), url, folder)

    def revise(
        self,
        artifact: Artifact,
        files: Mapping[str, bytes | Path | None],
        *,
        counts: dict[str, int] | None = None,
        dropped: dict[str, int] | None = None,
        evidence: dict[str, Any] | None = None,
        note: Mapping[str, Any],
    ) -> Artifact:
        """Replace, add or remove files of a finished artifact; it gets a new digest under the same identity.

        Safe against a kill at any point: the artifact is the old or the new one, and what is missing of the new
        one is completed by whoever reads it next. Nothing is done when nothing would change. Not to be called
        while a stage reads the artifact: what it has read may be gone.

        Args:
            files: new content by name: bytes, a local file that is copied, or None for a file that shall not be
                there. Asked for one by one, so that a mapping which makes them on demand need not hold all.
            counts, dropped, evidence: in place of the manifest's; None keeps them.
            note: plain JSON values that say why; kept with the time under ``Manifest.revisions``.

        Raises:
            RuntimeUnavailable: another process is changing this artifact, or has since ``artifact`` was read.
            StoreFullError: no room is left; the artifact is as it was.
        """
        from components.runtime.revision import revise

        return revise(artifact, files, counts, dropped, evidence, note)

    def _prefix(self, root: str) -> str:
        """What goes before a path of this filesystem to make it a URL."""
        return "" if self._local or not self.url.endswith(root) else self.url[: -len(root)]

    def _read(self, url: str) -> Artifact | None:
        from components.runtime.revision import settle

        settle(url)
        _, path = fsspec.core.url_to_fs(url)
        try:
            text = self._fs.cat_file(f"{path}/{MANIFEST_NAME}").decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return Artifact(url, Manifest.model_validate(json.loads(text)))
        except (ValueError, ValidationError) as error:
            raise ArtifactError(
                f"{url}/{MANIFEST_NAME} cannot be read: {str(error).splitlines()[0]}",
                expected="the manifest that the stage wrote",
                remedy="delete that folder and run the same command again; it is made anew from its inputs",
            ) from error


def cache_root() -> Path:
    """Folder of the copies of remote artifacts on this machine, ``$ATELIER_CACHE`` or ``~/.cache/atelier``."""
    return Path(os.environ.get("ATELIER_CACHE", Path.home() / ".cache" / "atelier"))


def record_of(fs: Any, path: str) -> FileRecord:
    """Size and checksum of the file at ``path`` of a filesystem."""
    sha, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as raw:
        file = cast(BinaryIO, raw)
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            size += len(chunk)
    return FileRecord(size=size, sha256=sha.hexdigest())


def _remote_drafts() -> Path:
    """Where this machine keeps drafts of remote stores."""
    return Path(tempfile.gettempdir()) / "atelier-drafts"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
