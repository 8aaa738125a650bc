"""Changing the files of a finished artifact: all of a revision or nothing, whenever the process is killed.

Everything new is written below ``_revision/files/`` first. ``_revision/plan.json``, written whole, is the point of
no return: before it the revision is as if it had never begun; from it on whoever reads the artifact next rolls it
forward (files, then the manifest, then away with the plan), which may be done any number of times.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from components.contracts.errors import ArtifactError, RuntimeUnavailable
from components.contracts.manifest import MANIFEST_NAME, FileRecord, Manifest, digest_of
from components.runtime.storage import (
    Artifact,
    Outcome,
    Store,
    cache_root,
    full_store_explained,
    record_of,
    write_bytes,
)

FOLDER = "_revision"
_PLAN = f"{FOLDER}/plan.json"
_STAGED = f"{FOLDER}/files"
_REPLACED = "takedown/replaced"  # in the store
_WAIT_S = 60.0  # a revision of another process moves files that are all written


def revise(
    artifact: Artifact,
    files: Mapping[str, bytes | Path | None],
    counts: dict[str, int] | None,
    dropped: dict[str, int] | None,
    evidence: dict[str, Any] | None,
    note: Mapping[str, Any],
) -> Artifact:
    """See :meth:`components.runtime.storage.Store.revise`."""
    fs, path = fsspec.core.url_to_fs(artifact.url)
    with exclusive(artifact.url), full_store_explained(artifact.url):
        if (plan := _plan(fs, path)) is not None:
            _carry_out(fs, path, artifact.url, plan)
        _discard(fs, path)
        current = Manifest.model_validate_json(fs.cat_file(f"{path}/{MANIFEST_NAME}"))
        if (current.digest, len(current.revisions)) != (artifact.digest, len(artifact.manifest.revisions)):
            raise RuntimeUnavailable(
                f"{artifact.short} was changed by another process", remedy="run the same command again"
            )
        put, remove = _stage(fs, path, artifact, files)
        records = {n: r for n, r in (dict(current.files) | put).items() if n not in remove}
        said = {"counts": counts, "dropped": dropped, "evidence": evidence}
        changes = {k: v for k, v in said.items() if v is not None and v != getattr(current, k)}
        if not put and not remove and not changes:
            _discard(fs, path)
            return Artifact(artifact.url, current)
        digest = digest_of(current.kind, records)
        earlier = [d for d in (*current.earlier, current.digest) if d != digest]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest = Manifest(
            **current.model_dump()
            | changes
            | {
                "files": dict(sorted(records.items())),
                "digest": digest,
                "earlier": tuple(dict.fromkeys(earlier)),
                "revisions": (*current.revisions, {"at": now, "from": current.digest, **note}),
            }
        )
        decided = {"put": sorted(put), "remove": sorted(remove), "manifest": manifest.model_dump(mode="json")}
        write_bytes(f"{artifact.url}/{_PLAN}", json.dumps(decided).encode())
        _carry_out(fs, path, artifact.url, decided)
    return Artifact(artifact.url, manifest)


def readdress(store: Store, artifact: Artifact, inputs: Mapping[str, Artifact]) -> None:
    """Put an artifact where a stage will look for it once its inputs were revised; the old address is given up.

    For artifacts whose content would come out the same if they were made again. Killed in the middle, the old one or
    both are there, and the same call does the rest. What other manifests name the old one by stays known.
    """
    draft = store.draft(artifact.manifest.kind, inputs, artifact.manifest.config)
    if draft.identity == artifact.manifest.identity:
        return
    fs, path = fsspec.core.url_to_fs(artifact.url)
    target = fsspec.core.url_to_fs(draft.url)[1]
    known = artifact.manifest
    with full_store_explained(draft.url):
        if store.find(draft.kind, draft.identity) is None:
            for name in known.files:
                fs.makedirs(fs._parent(f"{target}/{name}"), exist_ok=True)
                if isinstance(fs, LocalFileSystem):
                    Path(target, name).unlink(missing_ok=True)
                    try:
                        os.link(f"{path}/{name}", f"{target}/{name}")
                    except OSError:  # a filesystem without hard links
                        shutil.copyfile(f"{path}/{name}", f"{target}/{name}")
                else:
                    fs.cp_file(f"{path}/{name}", f"{target}/{name}")
            draft.commit(Outcome(known.counts, known.dropped, known.evidence, known.circumstance), artifact)
        if isinstance(fs, LocalFileSystem):
            gone = Path(store.url) / _REPLACED / Path(path).name
            gone.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, gone)
        else:
            fs.rm_file(f"{path}/{MANIFEST_NAME}")
            fs.rm(path, recursive=True)
    sweep(store)


def sweep(store: Store) -> None:
    """Remove what :func:`readdress` has given up, also where it was killed in the middle of that."""
    fs, path = fsspec.core.url_to_fs(f"{store.url}/{_REPLACED}")
    if fs.exists(path):
        fs.rm(path, recursive=True)


def settle(url: str) -> None:
    """Complete the revision of the artifact at ``url`` that a killed process decided on; discard one half staged.

    Raises:
        ArtifactError: there is one to complete, and the store cannot be written.
        RuntimeUnavailable: another process is at it for a minute.
    """
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache(path)  # of listings: another process may have written
    if not fs.exists(f"{path}/{FOLDER}"):
        return
    if _plan(fs, path) is None:
        with contextlib.suppress(OSError, RuntimeUnavailable), exclusive(url, wait_s=0):  # else it is under way
            if _plan(fs, path) is None:
                _discard(fs, path)
        return
    try:
        with exclusive(url), full_store_explained(url):
            if (plan := _plan(fs, path)) is not None:
                _carry_out(fs, path, url, plan)
    except PermissionError as error:
        raise ArtifactError(
            f"A revision of {url} was begun and cannot be completed: {error}",
            remedy="run `atelier status` once as the user who may write to the store",
        ) from error


def _stage(
    fs: Any, path: str, artifact: Artifact, files: Mapping[str, bytes | Path | None]
) -> tuple[dict[str, FileRecord], set[str]]:
    """Write what is new below ``_revision/files/``: records of the files that differ, and the names to remove."""
    put, remove = dict[str, FileRecord](), set[str]()
    for name in files:
        parts = PurePosixPath(name).parts
        assert parts and ".." not in parts and not name.startswith(("/", "_")) and name != MANIFEST_NAME, name
        value, known = files[name], artifact.manifest.files.get(name)
        if value is None:
            if known is not None:
                remove.add(name)
            continue
        if isinstance(value, Path):
            with value.open("rb") as file:
                record = FileRecord(size=value.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
        else:
            record = FileRecord(size=len(value), sha256=hashlib.sha256(value).hexdigest())
        if record == known:
            continue
        staged = f"{path}/{_STAGED}/{name}"
        if isinstance(value, Path):
            fs.makedirs(fs._parent(staged), exist_ok=True)
            fs.put_file(str(value), staged)
            if record_of(fs, staged) != record:
                raise ArtifactError(f"{value} changed while it was copied into {artifact.short}")
        else:
            write_bytes(f"{artifact.url}/{_STAGED}/{name}", value)
        put[name] = record
    return put, remove


def _carry_out(fs: Any, path: str, url: str, plan: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(plan["manifest"])
    for name in plan["put"]:
        staged, target = f"{path}/{_STAGED}/{name}", f"{path}/{name}"
        if not fs.exists(staged):  # moved, or in place and cleared away, before a kill
            continue
        fs.makedirs(fs._parent(target), exist_ok=True)
        if isinstance(fs, LocalFileSystem):
            os.replace(staged, target)
        else:
            fs.cp_file(staged, target)
    for name in plan["remove"]:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{path}/{name}")
    for stray in fs.glob(f"{path}/.tmp-*"):  # of a writer killed here before
        fs.rm_file(stray)
    write_bytes(f"{url}/{MANIFEST_NAME}", manifest.model_dump_json(indent=2).encode())
    for digest in manifest.earlier:  # copies of what it was, on this machine
        shutil.rmtree(cache_root() / digest, ignore_errors=True)
    if fs.exists(f"{path}/{_STAGED}"):
        fs.rm(f"{path}/{_STAGED}", recursive=True)
    fs.rm_file(f"{path}/{_PLAN}")
    _discard(fs, path)


def _discard(fs: Any, path: str) -> None:
    if fs.exists(f"{path}/{FOLDER}"):
        fs.rm(f"{path}/{FOLDER}", recursive=True)


def _plan(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        plan: dict[str, Any] = json.loads(fs.cat_file(f"{path}/{_PLAN}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return plan


@contextlib.contextmanager
def exclusive(url: str, wait_s: float | None = None) -> Iterator[None]:
    """Only one process on this machine changes what is at ``url``; the lock dies with its process.

    Args:
        url: ``{store}/{kind}/{name}``.
        wait_s: for another process to end, in seconds; a minute by default.

    Raises:
        RuntimeUnavailable: it did not.
    """
    from filelock import FileLock, Timeout

    fs, path = fsspec.core.url_to_fs(url)
    kind, name = PurePosixPath(path).parts[-2:]
    if isinstance(fs, LocalFileSystem):
        file = Path(path).parents[1] / "locks" / f"{kind}-{name}.lock"
    else:
        where = hashlib.sha256(url.encode()).hexdigest()[:16]
        file = cache_root() / "locks" / f"{kind}-{name}-{where}.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=_WAIT_S if wait_s is None else wait_s)
    except Timeout as error:
        raise RuntimeUnavailable(
            f"Another process is changing {kind} {name}",
            remedy="wait for it to end, then run the same command again",
        ) from error
    try:
        yield
    finally:
        lock.release()
