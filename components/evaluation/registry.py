"""Model versions and their aliases in MLflow, as the release stage keeps them.

``champion`` is the version that is served. ``challenger`` and ``shadow`` are versions that servers try beside it, see
:mod:`serving.routing`: the first one's pictures may be shown to some users, the second one's are not.

Tags of a version: ``verdict``, ``reasons``, those of them that failed it as ``failures``, digests (``model_digest``,
``weights``, ``data``, ``assessment``, ``judge``, ``policy``, ``record``, and ``against``: the champion's model that it
was compared with),
``promoted`` once it became champion, ``rolled_back`` and ``restored`` with the reason after a rollback, ``forced``
with the reason when it was made champion in spite of its verdict; ``by`` and ``at``, who released it when, and
``stamp``, that of its numbers; and what serving goes by, the signed ``gate`` and
``promotion`` of :mod:`components.evaluation.vouching`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts.errors import ArtifactError, GateRefused, RuntimeUnavailable
from components.evaluation.protocol import stamp_digest
from components.evaluation.signing import Keys
from components.evaluation.vouching import GATE, PROMOTION, gate_statement, newest, promotion_of, promotion_statement
from components.models.pyfunc import loadable
from components.runtime.progress import say
from components.runtime.stage import Context
from components.runtime.storage import Artifact, full_store_explained

if TYPE_CHECKING:
    from components.runtime.tracking import ModelVersion, Tracker

CHAMPION, CHALLENGER, SHADOW = "champion", "challenger", "shadow"
_LOCK_S = 60.0  # a release in another process takes seconds


class Registry:
    """The registered model of one recipe.

    Raises:
        RegistryError: on every call, when MLflow cannot be reached.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.name = ctx.recipe.release.model_name
        self._open: Tracker | None = None
        self.keys = Keys(ctx.home)

    @property
    def tracker(self) -> Tracker:
        """MLflow, connected on first use."""
        if self._open is None:
            from components.runtime.tracking import Tracker

            self._open = Tracker(self._ctx.registry_uri, self._ctx.recipe.name, self._ctx.home / "mlruns")
        return self._open

    @property
    def exists(self) -> bool:
        """False if there is no registry yet: looking into one must not make it."""
        uri = self._ctx.registry_uri
        return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process on this machine changes the registry of this recipe.

        Raises:
            RuntimeUnavailable: another one holds it for a minute.
        """
        from filelock import FileLock, Timeout

        folder = self._ctx.home / "locks"
        with full_store_explained(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "registry.lock").acquire(timeout=_LOCK_S):
                yield
        except Timeout as error:
            raise RuntimeUnavailable(
                "Another process is releasing a model of this recipe",
                remedy="wait for it to end, then run the same command again",
            ) from error

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        return self.tracker.versions(self.name) if self.exists else []

    def champion(self) -> ModelVersion | None:
        """The version that the alias names."""
        return self.tracker.alias(self.name, CHAMPION) if self.exists else None

    def model_of(self, version: ModelVersion) -> Artifact:
        """The model artifact of a version, found by the digest in its tags.

        Raises:
            ArtifactError: the release stage did not register the version, or the store lacks its model.
        """
        if "model_digest" not in version.tags:
            raise ArtifactError(
                f"Version {version.version} of {version.name} carries no model digest",
                expected="a version that the release stage registered",
                remedy="point the alias at such a version",
            )
        return self._ctx.store.by_digest(version.tags.get("model_kind", "model"), version.tags["model_digest"])

    def record_of(self, model: Artifact, assessment: Artifact | None, policy: str) -> Artifact | None:
        """See :func:`components.evaluation.release.find`."""
        wanted = {"model_digest": model.digest, "policy": policy}
        wanted |= {"assessment": assessment.digest} if assessment else {}
        present = self.champion()
        for version in reversed(self.versions()):
            tags = version.tags
            if any(tags.get(key) != value for key, value in wanted.items()):
                continue
            own = present is not None and present.version == version.version
            if own or tags.get("promoted") == "true" or tags.get("against", "") == _model_digest(present):
                with contextlib.suppress(ArtifactError):  # the record was deleted from the store: judge anew
                    return self._ctx.store.by_digest("release", tags["record"])
        return None

    def register(self, record: Artifact, content: dict[str, Any], model: Artifact, assessment: Artifact) -> None:
        """Register the judged model, unless the record has its version already."""
        if self._version_of(record) is None:
            made = self._register(record, content, model, assessment)
            say(f"release: version {made.version} of {self.name} registered, verdict {content['verdict']}")

    def carry_out(self, record: Artifact, content: dict[str, Any]) -> None:
        """Make the model of a registered record the champion if it passed and that is not yet done.

        With ``run.release_to=challenger`` it becomes the challenger of the champion there is.
        """
        version = self._version_of(record)
        if version is None or content["verdict"] != "pass":
            return
        present = self.champion()
        own = present is not None and present.version == version.version
        promoted = version.tags.get("promoted") == "true"
        if promoted and (not own or (self.signed(version) and promotion_of(version, self.keys))):
            return  # done, and perhaps replaced since
        if not own and _model_digest(present) not in (_against(content), content["model"]):
            say(f"release: version {version.version} was compared with another champion; alias unchanged")
            return
        if not self.signed(version):  # the key was changed, or the version is older than signatures
            self._sign(version.version, record, content)
        if self._ctx.recipe.run.release_to == CHALLENGER and present is not None and not own:
            self.tracker.set_alias(self.name, CHALLENGER, version.version)
            say(f"release: version {version.version} of {self.name} is the challenger")
            return
        self.promote(version.version, "passed the gate")
        say(f"release: version {version.version} of {self.name} is the champion")

    def force(self, version: int, reason: str) -> ModelVersion:
        """Make a version champion whatever its verdict; signed as forced, with the reason.

        Raises:
            GateRefused: no reason is given, or the version carries no record of this gate.
        """
        if not reason.strip():
            raise GateRefused("A forced release needs a reason", remedy='give one: --force --reason "..."')
        found = next((v for v in self.versions() if v.version == version), None)
        if found is None or not self.signed(found):
            raise GateRefused(
                f"Version {version} of {self.name} carries no record that this gate signed",
                expected="a version that the release stage registered",
                remedy="run `atelier release` first; it registers the model with its verdict, whatever that is",
            )
        forced = f"{found.tags.get('verdict', 'no verdict')}, forced: {reason.strip()}"
        self.promote(version, reason.strip(), forced=True)
        self.tracker.tag_version(self.name, version, {"forced": forced})
        say(f"release: version {version} of {self.name} is the champion by force ({reason.strip()})")
        return self.tracker.version(self.name, version)

    @property
    def can_roll_back(self) -> bool:
        """Whether :meth:`rollback` has a version to return to."""
        present = self.champion()
        return present is not None and any(_can_return(v, present) for v in self.versions())

    def mend(self) -> None:
        """Put the alias on the version that was promoted last, wherever somebody has moved it to."""
        last, present = newest(self.versions(), self.keys), self.champion()
        if last is not None and (present is None or present.version != last[0].version):
            moved = f"points at version {present.version}" if present else "is gone"
            self.tracker.set_alias(self.name, CHAMPION, last[0].version)
            say(f"release: the alias {moved} without a promotion; put back on version {last[0].version}")

    def rollback(self, reason: str) -> ModelVersion:
        """See :func:`rollback`."""
        versions, present = self.versions(), self.champion()
        fit = [v for v in versions if present is not None and _can_return(v, present)]
        if present is None or not fit:
            raise GateRefused(
                f"There is no earlier champion of {self.name} to roll back to",
                expected="an earlier version that passed the gate and was champion",
                remedy="train and release a better model; the champion is unchanged",
            )
        # tags first: when this is killed before the alias moves, the same call does the rest
        self.tracker.tag_version(self.name, present.version, {"rolled_back": reason})
        restored = {"restored": f"in place of version {present.version}: {reason}"}
        self.tracker.tag_version(self.name, fit[-1].version, restored)
        self.promote(fit[-1].version, f"rolled back to from version {present.version}: {reason}")
        say(f"release: version {present.version} rolled back to {fit[-1].version} ({reason})")
        return self.tracker.version(self.name, fit[-1].version)

    def promote(self, version: int, reason: str, forced: bool = False) -> None:
        """Sign the promotion, then move the alias to ``version``: killed in between, :meth:`mend` does the rest."""
        now = self.tracker.version(self.name, version)
        last = newest(self.versions(), self.keys)
        if forced or last is None or last[0].version != version:
            said = promotion_statement(now, last[1] + 1 if last else 1, reason, forced)
            self.tracker.tag_version(self.name, version, {PROMOTION: self.keys.sign(said)})
        self.tracker.set_alias(self.name, CHAMPION, version)
        self.tracker.tag_version(self.name, version, {"promoted": "true"})

    def signed(self, version: ModelVersion) -> bool:
        """Whether ``version`` carries a record that this gate signed."""
        try:
            self.keys.verified(version.tags.get(GATE, ""), "record")
        except GateRefused:
            return False
        return True

    def _sign(self, version: int, record: Artifact, content: dict[str, Any]) -> None:
        self.tracker.tag_version(self.name, version, {GATE: self.keys.sign(gate_statement(content, record.digest))})

    def _version_of(self, record: Artifact) -> ModelVersion | None:
        return next((v for v in self.versions() if v.tags.get("record") == record.digest), None)

    def _register(
        self, record: Artifact, content: dict[str, Any], model: Artifact, assessment: Artifact
    ) -> ModelVersion:
        """Log the judgement as a run and register the model, continuing a run that a kill left open."""
        recipe, recorder = self._ctx.recipe, self._ctx.recorder
        identity = {"artifact": record.manifest.identity}
        tags = {**identity, "record": record.digest, "stage": "release", "verdict": content["verdict"]}
        begun, parent = self.tracker.find_run(identity), recorder.parent() if recorder else None
        statement = gate_statement(content, record.digest)
        signed = self.keys.sign(statement)
        with self.tracker.run(f"release {model.digest[:12]}", parent, tags, begun) as run:
            run.set_tags(tags)
            run.log_params({"assess": recipe.assess.identity(), "release": recipe.release.identity()})
            for name, metrics in content["metrics"].items():
                parts = (("", "value"), (".low", "low"), (".high", "high"))
                run.log_metrics({f"{name}/{m}{end}": n[key] for m, n in metrics.items() for end, key in parts})
            run.log_artifact(record.path("record.json"), "release")
            for file in ("metrics.json", "sheet.png"):
                run.log_artifact(assessment.path(file), "release")
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "gate.json").write_text(signed + "\n", encoding="utf-8")
                run.log_artifact(Path(folder) / "gate.json", "release")
        shown = {
            **{k: content[k] for k in ("verdict", "weights", "data", "assessment", "judge")},
            **{k: statement[k] for k in ("by", "at")},
            "reasons": "\n".join(content["reasons"]),
            "failures": "\n".join(content["failures"]),
            "policy": content["policy_digest"],
            "stamp": stamp_digest(content["stamp"]),
            "record": record.digest,
            "against": _against(content),
            "model_digest": model.digest,
            "model_kind": model.manifest.kind,
            GATE: signed,
        }
        with tempfile.TemporaryDirectory() as folder:
            usual = recipe.serve
            code = loadable(model, Path(folder), usual.default_steps, usual.default_guidance)
            described = described_in_markdown(content["metrics"], content["verdict"], content["reasons"])
            return self.tracker.register(self.name, model.url, run.id, shown, described, code)


def champion(ctx: Context) -> tuple[ModelVersion, Artifact] | None:
    """The version that the alias ``champion`` names and its model artifact, or None when there is none.

    Raises:
        ArtifactError: the store does not hold the model (any more).
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    found = registry.champion()
    return (found, registry.model_of(found)) if found else None


def require_champion(ctx: Context) -> tuple[ModelVersion, Artifact]:
    """See :func:`champion`; there must be one.

    Raises:
        ArtifactError: there is none (yet), or the store does not hold its model.
        RegistryError: the registry is down.
    """
    if found := champion(ctx):
        return found
    raise ArtifactError(
        f"{ctx.recipe.release.model_name} has no champion",
        expected="a model that passed the release gate",
        remedy=f"run `atelier run --recipe {ctx.recipe.name}` first",
    )


def versions(ctx: Context) -> list[ModelVersion]:
    """All registered versions, oldest first, passed or not.

    Raises:
        RegistryError: the registry is down.
    """
    return Registry(ctx).versions()


def can_roll_back(ctx: Context) -> bool:
    """Whether :func:`rollback` has an earlier champion to return to.

    Raises:
        RegistryError: the registry is down.
    """
    return Registry(ctx).can_roll_back


def rollback(ctx: Context, reason: str) -> ModelVersion:
    """Point ``champion`` at the newest earlier version that passed and was champion; tags say why.

    Raises:
        GateRefused: there is no such version.
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    with registry.locked():
        registry.mend()
        return registry.rollback(reason)


def force(ctx: Context, reason: str, version: int | None = None, record: Artifact | None = None) -> ModelVersion:
    """Make a registered version the champion whatever its verdict, signed as forced.

    Args:
        reason: kept with the signature. version: its number; or ``record``, the gate's on it.

    Raises:
        GateRefused: no reason is given, or the version carries no signed record of the gate.
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    with registry.locked():
        if record is not None and version is None:
            version = next((v.version for v in registry.versions() if v.tags.get("record") == record.digest), None)
        return registry.force(version or 0, reason)


def _against(content: dict[str, Any]) -> str:
    return str(content["champion"]["model"]) if content["champion"] else ""


def _can_return(version: ModelVersion, present: ModelVersion) -> bool:
    tags = version.tags
    was_champion = tags.get("verdict") == "pass" and tags.get("promoted") == "true" and "rolled_back" not in tags
    return (
        was_champion and version.version < present.version and tags["model_digest"] != present.tags.get("model_digest")
    )


def _model_digest(version: ModelVersion | None) -> str:
    return version.tags.get("model_digest", "") if version else ""


def described_in_markdown(metrics: Mapping[str, Any], verdict: str = "", reasons: Sequence[str] = ()) -> str:
    """Numbers by prompt set and metric, and what the gate said, as MLflow shows a description."""
    lines = [f"**{verdict}** at the release gate", "", *(f"- {reason}" for reason in reasons), ""] if verdict else []
    lines += ["| prompts | metric | value | interval | n |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {metric} | {m['value']:.4g} | {m['low']:.4g} to {m['high']:.4g} | {m['n']} |"
        for name, numbers in metrics.items()
        for metric, m in numbers.items()
    ]
    return "\n".join(lines)
