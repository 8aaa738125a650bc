"""Styles by name: which LoRA adapters the registry holds, which of them fit the served model, and their files.

Weights come from the registry's artifacts alone, as safetensors with checksums; a request names a style, never a file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from components.contracts.errors import ArtifactError, AtelierError
from components.evaluation.signing import Keys
from components.evaluation.styles import Style, fitting, registered, require_signed
from components.models.adapters import WEIGHTS
from components.runtime.opening import open_artifact
from components.runtime.tracking import Tracker
from serving.answers import StyleInfo
from serving.engine import Served
from serving.schemas import ApiError, Lora

_log = logging.getLogger("ray.serve")


class StyleBook:
    """The adapters of the model called ``model``, signed with one of ``keys``.

    What was read of the registry is good for ``every_s`` seconds. A registry that does not answer changes nothing in
    what is known already. May be asked from several threads.
    """

    def __init__(self, uri: str, experiment: str, model: str, keys: Keys, *, every_s: float = 2.0) -> None:
        self._read_registry = _reader(uri, experiment, model)
        self._keys, self._every = keys, every_s
        self._lock = threading.Lock()
        self._known: list[Style] = []
        self._read_at = float("-inf")
        self._error: str | None = None
        self._folders: dict[str, Path] = {}  # of adapters that were found whole, by digest

    def listing(self, served: Served) -> list[StyleInfo]:
        """Every style by name, with whether the served model can be asked for it."""
        known = self._styles()
        usable = fitting(known, served.digest)
        newest = {style.name: style for style in known} | usable
        return [
            StyleInfo(id=name, caption=style.caption, model_version=style.base_version, available=name in usable)
            for name, style in sorted(newest.items())
        ]

    def find(self, name: str, served: Served) -> Lora:
        """The adapter called ``name`` for the served model, its file checked.

        Raises:
            ApiError: 400; there is none of that name, or it was made for another version. 503; its file, or the
                registry, cannot be read.
        """
        if not served.generator.uses_styles:
            raise _refused(f"The served model draws no styles, so {name[:100]!r} cannot be had.")
        known = self._styles()
        usable = fitting(known, served.digest)
        if name not in usable:
            raise self._refusal(name, known, sorted(usable), served)
        return self._opened(usable[name])

    def _refusal(self, name: str, known: list[Style], usable: list[str], served: Served) -> ApiError:
        other = next((style for style in reversed(known) if style.name == name), None)
        if other is None and self._error:
            return ApiError(503, "styles_unavailable", "The styles cannot be looked up now. Try again.", retry_after=5)
        listed = f"Known: {', '.join(usable)}." if usable else "There is none for this model."
        if other is None:
            return _refused(f"There is no style {name[:100]!r}. {listed}")
        made = f"version {other.base_version}" if other.base_version else "another model"
        return _refused(
            f"The style {name!r} was made for {made}, and version {served.version} is served: train it again on that "
            f"with `atelier finetune --images`. {listed}",
            "style_of_another_version",
        )

    def _opened(self, style: Style) -> Lora:
        try:
            require_signed(style, self._keys)  # at every request: another version may name the same files
            with self._lock:
                folder = self._folders.get(style.digest)
            folder = folder or _checked(style)
        except (AtelierError, OSError) as error:
            _log.error("Style %s cannot be used. %s", style.name, error)
            message = f"The style {style.name!r} cannot be used now. The reason is in the server's log."
            raise ApiError(503, "style_unavailable", message, param="style", retry_after=30) from error
        with self._lock:
            self._folders[style.digest] = folder
        return Lora(style.name, style.digest, folder)

    def _styles(self) -> list[Style]:
        with self._lock:
            if time.monotonic() - self._read_at >= self._every:
                try:
                    self._known, self._error = self._read_registry(), None
                except Exception as error:  # of whatever kind: what is known stays
                    if str(error) != self._error:
                        _log.error("The styles cannot be read from the registry. %s", error)
                    self._error = str(error)
                self._read_at = time.monotonic()
            return self._known


def _checked(style: Style) -> Path:
    """Local folder of the weights, whole and those that were registered."""
    artifact = open_artifact(style.source)
    if artifact.digest != style.digest:
        raise ArtifactError(
            f"{style.source} holds another adapter than the one registered as {style.name}",
            expected=f"digest {style.digest[:12]}, found {artifact.digest[:12]}",
            remedy="restore the artifact, or train the style again",
        )
    artifact.verify()
    return artifact.path(f"model/{WEIGHTS}").parent


def _refused(message: str, code: str = "unknown_style") -> ApiError:
    return ApiError(400, code, message, param="style")


def _reader(uri: str, experiment: str, model: str) -> Callable[[], list[Style]]:
    trackers: list[Tracker] = []

    def read() -> list[Style]:
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            return []  # opening it would make the file: a reader must not
        if not trackers:
            trackers.append(Tracker(uri, experiment))
        return registered(trackers[0], model)

    return read
