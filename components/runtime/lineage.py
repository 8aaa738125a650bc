"""What was made from what: from one artifact to everything that has learned from it, revised or not."""

from __future__ import annotations

from collections.abc import Iterable

from components.runtime.storage import Artifact


def descendants(artifacts: Iterable[Artifact], of: Iterable[Artifact], through: frozenset[str]) -> list[Artifact]:
    """Artifacts with one of ``of`` among their inputs, or an artifact that has; in the order of ``artifacts``.

    Args:
        artifacts: of one store.
        of: where to begin; they are not in the answer.
        through: kinds that are followed. Others hand nothing on.
    """
    everything = list(artifacts)
    known = {digest for artifact in of for digest in digests(artifact)}
    found: dict[str, Artifact] = {}
    while True:
        more = [
            artifact
            for artifact in everything
            if artifact.url not in found
            and artifact.manifest.kind in through
            and known & set(artifact.manifest.inputs.values())
        ]
        if not more:
            return [artifact for artifact in everything if artifact.url in found]
        found |= {artifact.url: artifact for artifact in more}
        known |= {digest for artifact in more for digest in digests(artifact)}


def digests(artifact: Artifact) -> tuple[str, ...]:
    """All digests that other manifests may name the artifact by, the present one first."""
    return (artifact.digest, *artifact.manifest.earlier)


def ancestors(artifacts: Iterable[Artifact], of: Artifact) -> dict[str, list[tuple[str, Artifact]]]:
    """What ``of`` was made from, back to the sources: by URL of an artifact, its inputs ``(role, artifact)``.

    The keys are in the order from ``of`` to the sources, each once. An input that the store does not hold any more
    is left out.

    Args:
        artifacts: of one store.
    """
    by_digest = {digest: artifact for artifact in artifacts for digest in digests(artifact)}
    found: dict[str, list[tuple[str, Artifact]]] = {}
    waiting = [of]
    while waiting:
        artifact = waiting.pop(0)
        if artifact.url in found:
            continue
        inputs = [(role, by_digest[d]) for role, d in sorted(artifact.manifest.inputs.items()) if d in by_digest]
        found[artifact.url] = inputs
        waiting += [one for _, one in inputs]
    return found
