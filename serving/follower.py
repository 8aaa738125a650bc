"""Follows the registry's champion: notices a new one, checks it, loads it beside the old, hands it over.

An alias alone moves nothing: the gate must vouch for the version, see :mod:`components.evaluation.vouching`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec
from pydantic import ValidationError

from components.contracts.errors import ArtifactError, AtelierError, RegistryError
from components.contracts.manifest import MANIFEST_NAME, Manifest, digest_of
from components.evaluation.signing import Keys
from components.evaluation.vouching import vouched
from components.models.families import ImageGenerator, index_of
from components.runtime.storage import Artifact
from components.runtime.tracking import ModelVersion, Tracker
from serving.engine import Served
from serving.metrics import Metrics

CHAMPION = "champion"
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class FollowerState:
    """What the follower knows. ``registry_error``, ``refused`` and ``forced`` are for people; None when all is well."""

    served: str | None = None  # version
    loading: str | None = None  # version
    refused: str | None = None  # version that could not be loaded
    refused_why: str | None = None
    registry_error: str | None = None
    forced: str | None = None  # why the served version was released in spite of the gate's verdict


class Follower:
    """Looks at the champion alias of ``model`` every ``every_s`` seconds, on a thread of its own.

    A registry that does not answer, an alias that vanished, or a champion that is damaged, does not load or that
    the gate does not vouch for changes nothing in what is served; it is kept in :attr:`state`, counted and logged.

    Args:
        load: opens a model folder; called off the serving threads.
        switch: takes the loaded model over.
        keys: what the gate signs with.
        policy: digest of the release policy that a champion must have passed; None takes any.
        retry_s: a champion that was refused is tried again after this long, in seconds.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        model: str,
        *,
        load: Callable[[Path], ImageGenerator],
        switch: Callable[[Served], None],
        metrics: Metrics,
        keys: Keys,
        policy: str | None = None,
        every_s: float = 1.5,
        retry_s: float = 30.0,
    ) -> None:
        self._uri, self._experiment, self._model = uri, experiment, model
        self._load, self._switch, self._metrics = load, switch, metrics
        self._keys, self._policy = keys, policy
        self._every, self._retry = every_s, retry_s
        self._tracker: Tracker | None = None
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self.state = FollowerState()

    def start(self) -> None:
        """Look once now, and load the champion there is; then keep looking on the thread."""
        self.check()
        self._thread.start()

    def close(self) -> None:
        """Stop looking; a model that is being loaded is given up at the next step."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def check(self) -> None:
        """One look at the registry, with all that follows from it. Never raises."""
        try:
            champion = self._champion()
        except Exception as error:
            self._tracker = None  # connect anew
            self._metrics.registry_up.set(0)
            self._metrics.registry_errors.inc()
            self._note(
                "registry_error",
                str(error),
                f"The registry cannot be read; version {self.state.served} stays",
            )
            return
        self._metrics.registry_up.set(1)
        if self.state.registry_error:
            _log.warning("The registry answers again")
        self.state = _with(self.state, registry_error=None)
        if champion is None:  # none yet, or the alias was removed: what is served stays
            return
        version = str(champion.version)
        if version == self.state.served:
            self.state = _with(self.state, refused=None, refused_why=None)
        elif version != self.state.refused or time.monotonic() >= self._retry_at:
            self._take(champion, version)

    def _take(self, champion: ModelVersion, version: str) -> None:
        self.state = _with(self.state, loading=version)
        try:
            started = time.monotonic()
            artifact = open_artifact(champion.source)
            expected = champion.tags.get("model_digest", artifact.digest)
            if artifact.digest != expected:
                raise ArtifactError(
                    f"{champion.source} holds another model than the one released as version {version}",
                    expected=f"digest {expected[:12]}, found {artifact.digest[:12]}",
                    remedy="restore the artifact, or move the champion alias to a version that is whole",
                )
            artifact.verify()
            assert self._tracker is not None, "the champion came from it"
            vouch = vouched(champion, self._tracker.versions(self._model), self._keys, artifact, self._policy)
            generator = self._load(model_folder(artifact))
            warm_up(generator)
            if self._stop.is_set():
                return
            self._switch(Served(version, generator, artifact.digest))
            self.state = _with(self.state, served=version, refused=None, refused_why=None, forced=vouch.forced or None)
            self._metrics.forced.set(bool(vouch.forced))
            if vouch.forced:
                _log.warning(
                    "Version %s did not pass the gate (%s); forced by %s at %s: %s",
                    version, vouch.verdict, vouch.by, vouch.at, vouch.forced,
                )  # fmt: skip
            _log.warning(
                "Serving version %s (%s), loaded in %.1f s",
                version,
                artifact.short,
                time.monotonic() - started,
            )
        except Exception as error:
            self._metrics.refused_models.inc()
            self._retry_at = time.monotonic() + self._retry
            what = str(error) if isinstance(error, AtelierError) else f"{type(error).__name__}: {error}"
            self._note("refused_why", what, f"Version {version} cannot be served; version {self.state.served} stays")
            self.state = _with(self.state, refused=version)  # last: whoever sees it finds the reason
        finally:
            self.state = _with(self.state, loading=None)

    def _champion(self) -> ModelVersion | None:
        if self._uri.startswith("sqlite:///"):
            # opening would make a missing file and fill it; a reader must do neither
            file = Path(self._uri.removeprefix("sqlite:///"))
            if not file.exists() and self.state.served is None and self._tracker is None:
                return None  # nothing has been released yet
            if not os.access(file, os.R_OK):
                raise RegistryError(f"The registry file {file} is gone or unreadable", remedy="restore it")
            if self._tracker is None and not _has_aliases(file):
                return None
        if self._tracker is None:
            self._tracker = Tracker(self._uri, self._experiment)
        return self._tracker.alias(self._model, CHAMPION)

    def _note(self, field: str, what: str, consequence: str) -> None:
        if getattr(self.state, field) != what:  # once, not at every look
            _log.error("%s. %s", consequence, what)
        self.state = _with(self.state, **{field: what})

    def _follow(self) -> None:
        while not self._stop.wait(self._every):
            self.check()


def open_artifact(url: str) -> Artifact:
    """The finished model artifact at ``url``, an artifact folder in any store.

    Raises:
        ArtifactError: there is none, or its manifest does not agree with itself.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        manifest = Manifest.model_validate_json(fs.cat_file(f"{path}/{MANIFEST_NAME}"))
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{url}/{MANIFEST_NAME} cannot be read: {str(error).splitlines()[0]}",
            expected="the finished model artifact that was released",
            remedy="restore the artifact, or move the champion alias to a version that is whole",
        ) from error
    if digest_of(manifest.kind, manifest.files) != manifest.digest:
        raise ArtifactError(
            f"The manifest of {url} was changed after it was written",
            expected=f"digest {manifest.digest[:12]}",
            remedy="restore the artifact, or move the champion alias to a version that is whole",
        )
    return Artifact(url, manifest)


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


def _has_aliases(file: Path) -> bool:
    import sqlite3

    with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        query = "select count(*) from sqlite_master where name = 'registered_model_aliases'"
        return bool(connection.execute(query).fetchone()[0])


def _with(state: FollowerState, **changes: str | None) -> FollowerState:
    return FollowerState(**{**vars(state), **changes})
