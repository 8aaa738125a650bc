"""Which model version may be served: the one that the gate vouches for, whatever an alias says.

Two signed statements are tags of a version. ``gate`` says what the gate found: the model, its weights, the policy
and the verdict. ``promotion`` says that this very version was made champion, and as the how-manieth, so that an
alias moved back by hand to an earlier champion is as little trusted as one moved to a model that failed.

A version that is only tried beside the champion needs no promotion. What is shown to some users must have passed, or
have been forced; what is drawn for comparison and shown to nobody need only have been measured: see :func:`tried`.
"""

from __future__ import annotations

import datetime
import getpass
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from components.contracts.errors import GateRefused
from components.contracts.manifest import canonical_json, sha256_text
from components.contracts.recipe import Release
from components.evaluation.signing import Keys
from components.runtime.storage import Artifact

GATE, PROMOTION = "gate", "promotion"


class Version(Protocol):
    """What is read of a registered version; :class:`components.runtime.tracking.ModelVersion` is one."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Vouch:
    """What the gate says of a version that may be served."""

    serial: int  # of the promotion: 1 for the first champion
    verdict: str
    forced: str  # the reason it was forced, empty when it passed
    by: str
    at: str  # UTC, ISO 8601


def weights_digest(model: Artifact) -> str:
    """SHA-256 over the names and checksums of a model's weight files."""
    files = {n: f.sha256 for n, f in model.manifest.files.items() if n.endswith(".safetensors")}
    return sha256_text(canonical_json(files))


def policy_digest(policy: Release) -> str:
    """SHA-256 of the release section of a recipe."""
    return sha256_text(canonical_json(policy.identity()))


def gate_statement(content: Mapping[str, Any], record: str) -> dict[str, Any]:
    """What is signed of a gate's record: digests, verdict, and who said it when. ``record`` is its digest."""
    digests = {k: content[k] for k in ("model", "weights", "data", "assessment", "judge", "verdict")}
    return {**digests, "policy": content["policy_digest"], "record": record, **who_and_when()}


def promotion_statement(version: Version, serial: int, reason: str, forced: bool = False) -> dict[str, Any]:
    """What is signed when ``version``, which carries its gate statement, is made champion."""
    return {
        "registered": version.name, "version": version.version, "serial": serial, "reason": reason,
        "forced": forced, "gate": sha256_text(version.tags.get(GATE, "")), **who_and_when(),
    }  # fmt: skip


def promotion_of(version: Version, keys: Keys) -> dict[str, Any] | None:
    """The promotion of a version, or None where it has none that holds."""
    try:
        found = keys.verified(version.tags.get(PROMOTION, ""), f"promotion of version {version.version}")
    except GateRefused:
        return None
    if (found["registered"], found["version"]) != (version.name, version.version):
        return None  # copied from another version
    return found


def newest(versions: Iterable[Version], keys: Keys) -> tuple[Version, int] | None:
    """The version that was made champion last, and its serial; None when none was."""
    found = [(version, p["serial"]) for version in versions if (p := promotion_of(version, keys))]
    return max(found, key=lambda pair: pair[1], default=None)


def vouched(
    version: Version, versions: Iterable[Version], keys: Keys, model: Artifact, policy: str | None = None
) -> Vouch:
    """What the gate says for serving ``model`` as ``version``.

    Args:
        versions: all of the registered model.
        model: the artifact that would be served, verified.
        policy: digest of the policy that must have been applied; None takes any.

    Raises:
        GateRefused: the gate does not vouch for it; the message says why.
    """
    name = f"version {version.version} of {version.name}"
    keys.verified(version.tags.get(GATE, ""), f"gate's record of {name}")
    promotion = keys.verified(version.tags.get(PROMOTION, ""), f"promotion of {name}")
    if (promotion["registered"], promotion["version"]) != (version.name, version.version):
        raise GateRefused(
            f"The promotion of {name} is that of version {promotion['version']} of {promotion['registered']}",
            remedy=_REMEDY,
        )
    if promotion["gate"] != sha256_text(version.tags[GATE]):
        raise GateRefused(f"{name} was promoted by another record of the gate than it carries", remedy=_REMEDY)
    said = _measured(version, keys, model)
    last = newest(versions, keys)
    if last is not None and last[1] > promotion["serial"]:
        raise GateRefused(
            f"The alias was moved by hand to {name}; version {last[0].version} was made champion after it",
            remedy="use `atelier release --rollback` to go back, or run `atelier release`, which puts the alias right",
        )
    if promotion["forced"]:
        return Vouch(promotion["serial"], said["verdict"], promotion["reason"], promotion["by"], promotion["at"])
    _passed(name, said, policy)
    return Vouch(promotion["serial"], "pass", "", promotion["by"], promotion["at"])


def tried(version: Version, keys: Keys, model: Artifact, policy: str | None = None, *, shown: bool) -> Vouch:
    """What the gate says for trying ``model`` as ``version`` beside the champion.

    Args:
        shown: what it draws is given to users, so it must have passed, or once have been promoted by force.
            Otherwise it is enough that the gate has measured these very weights, whatever it found.

    Raises:
        GateRefused: the gate does not vouch for that; the message says why.
    """
    said = _measured(version, keys, model)
    promotion = promotion_of(version, keys)
    forced = promotion["reason"] if promotion and promotion["forced"] else ""
    if shown and not forced:
        _passed(f"version {version.version} of {version.name}", said, policy)
    return Vouch(0, said["verdict"], forced, said["by"], said["at"])


def _measured(version: Version, keys: Keys, model: Artifact) -> dict[str, Any]:
    """What the gate signed of ``version``, if it is about this ``model`` and these weights."""
    name = f"version {version.version} of {version.name}"
    said = keys.verified(version.tags.get(GATE, ""), f"gate's record of {name}")
    if said["model"] not in (model.digest, *model.manifest.earlier):
        raise GateRefused(
            f"The gate's record of {name} is about another model",
            expected=f"digest {model.digest[:12]}, found {said['model'][:12]}",
            remedy=_REMEDY,
        )
    if said["weights"] != weights_digest(model):
        raise GateRefused(
            f"The weights of {name} are not those that the gate measured",
            expected=f"digest {said['weights'][:12]}, found {weights_digest(model)[:12]}",
            remedy="restore the model's files, or release the model again",
        )
    return said


def _passed(name: str, said: Mapping[str, Any], policy: str | None) -> None:
    if said["verdict"] != "pass":
        raise GateRefused(f"The verdict on {name} is {said['verdict']}", expected="pass", remedy=_REMEDY)
    if policy is not None and said["policy"] != policy:
        raise GateRefused(
            f"{name} was judged under another policy than the recipe's release section",
            expected=f"policy {policy[:12]}, found {said['policy'][:12]}",
            remedy="run `atelier release`: it judges the model under the present policy",
        )


_REMEDY = "run `atelier release`: it puts the alias on the version that was promoted last, or judges anew"


def who_and_when() -> dict[str, str]:
    """``by``: user and machine, and ``at``: UTC, ISO 8601."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for the user id
        user = "unknown"
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"by": f"{user}@{socket.gethostname()}", "at": at}
