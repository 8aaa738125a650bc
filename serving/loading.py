"""From a registered version to a model that draws: a local copy, checked, opened and tried once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from components.contracts.errors import ArtifactError
from components.contracts.manifest import MANIFEST_NAME
from components.models.families import ImageGenerator, index_of
from components.runtime.opening import open_artifact
from components.runtime.storage import Artifact, cache_root

T = TypeVar("T")
_log = logging.getLogger("ray.serve")


def local_copy(url: str, digest: str | None = None) -> Artifact:
    """The artifact at ``url`` as a folder of this machine, every file of it checked against its manifest.

    A copy of a remote artifact that this machine has already (``cache_root``) is taken without asking the store, so a
    replica starts warm, and also while the store is away. A copy that is damaged is fetched anew.

    Args:
        digest: that it must have; None takes any.

    Raises:
        ArtifactError: there is none, it is damaged, or it is another one.
    """
    fs, _ = fsspec.core.url_to_fs(url)
    local = isinstance(fs, LocalFileSystem)
    if not local and digest is not None and (copy := _cached(digest)):
        return copy
    artifact = open_artifact(url)
    if digest is not None and artifact.digest != digest:
        raise ArtifactError(
            f"{url} holds another artifact than the one that was released",
            expected=f"digest {digest[:12]}, found {artifact.digest[:12]}",
            remedy="restore the artifact, or release one that is whole",
        )
    if local:
        artifact.verify()
        return artifact
    return _cached(artifact.digest) or Artifact(str(artifact.local()), artifact.manifest)  # fetching checks it


def _cached(digest: str) -> Artifact | None:
    folder = cache_root() / digest
    if not (folder / MANIFEST_NAME).exists():
        return None
    try:
        copy = open_artifact(str(folder))
        copy.verify()
    except ArtifactError as error:
        _log.warning("A cached copy is damaged and is fetched anew. %s", error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return copy if copy.digest == digest else None


def model_folder(artifact: Artifact) -> Path:
    """The model's folder in ``artifact``: of a diffusers pipeline, or of a cnn, vae or gan.

    Raises:
        ArtifactError: it holds none.
    """
    return artifact.path(index_of(list(artifact.manifest.files))).parent


def warm_up(generator: ImageGenerator) -> None:
    """Draw one picture, so that a model that cannot is never served and the first request does not wait."""
    generator.truncated("a warm-up")
    generator.generate(["a warm-up"], [0], steps=2, guidance_scale=2.0)


def aside(work: Callable[[], T]) -> T:
    """What ``work`` gives, done on a thread that ends with it.

    OpenMP keeps a team of threads for every thread that has computed, as long as that lives. Where all teams together
    have more threads than there are cores, GNU's does not let them wait awake for their next piece of work, and the
    short operations of a step take twice as long: the thread that draws must be the only one with a team.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
