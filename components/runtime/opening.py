"""A finished artifact by its URL alone, for whoever was told where it is and has no store: servers, loaders."""

from __future__ import annotations

import fsspec
from pydantic import ValidationError

from components.contracts.errors import ArtifactError
from components.contracts.manifest import MANIFEST_NAME, Manifest, digest_of
from components.runtime.storage import Artifact

_REMEDY = "restore the artifact, or name another one that is whole"


def open_artifact(url: str, digest: str | None = None) -> Artifact:
    """The finished artifact at ``url``, an artifact's folder in any store. Its files are not read: see ``verify``.

    Args:
        digest: that it must have, now or before a revision; None takes any.

    Raises:
        ArtifactError: there is none, its manifest does not agree with itself, or it is another one.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        manifest = Manifest.model_validate_json(fs.cat_file(f"{path}/{MANIFEST_NAME}"))
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(
            f"{url}/{MANIFEST_NAME} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}",
            expected="a finished artifact",
            remedy=_REMEDY,
        ) from error
    if digest_of(manifest.kind, manifest.files) != manifest.digest:
        raise ArtifactError(
            f"The manifest of {url} was changed after it was written",
            expected=f"digest {manifest.digest[:12]}",
            remedy=_REMEDY,
        )
    if digest is not None and digest not in (manifest.digest, *manifest.earlier):
        raise ArtifactError(
            f"{url} holds another artifact than was named",
            expected=f"digest {digest[:12]}, found {manifest.digest[:12]}",
            remedy=_REMEDY,
        )
    return Artifact(url, manifest)
