"""Stage 5: the gate's record. What the registry shows of it is in :mod:`components.evaluation.registry`.

The record is an artifact: made once, without times or version numbers in it. The registry (an MLflow run, a
model version with tags, the alias ``champion``) is put right every time the stage runs, so that a kill in
between leaves nothing half done for long.
"""

from __future__ import annotations

import json
from typing import Any

from components.contracts.errors import ArtifactError, GateRefused, InputError
from components.contracts.manifest import canonical_json, sha256_text
from components.evaluation.assess import Assessment
from components.evaluation.gate import decide, primary_set
from components.evaluation.registry import Registry, champion, require_champion, rollback, versions
from components.runtime.progress import say
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

__all__ = [
    "champion",
    "find",
    "policy_digest",
    "read_record",
    "release",
    "require_champion",
    "require_pass",
    "rollback",
    "versions",
    "weights_digest",
]


def release(
    ctx: Context, model: Artifact, assessment: Artifact, champion_assessment: Artifact | None = None
) -> Artifact:
    """Judge ``model``, register it with the verdict, and make it the champion if it passed.

    A model is judged once for an assessment, a policy and a champion: running again finds the record and only
    completes what the registry lacks of it. A model that was champion and was replaced or rolled back since
    is not made champion again.

    Args:
        assessment: of ``model``.
        champion_assessment: of the present champion under the same judge; None when there is no champion, or
            when ``model`` is the champion.

    Returns:
        The record (kind ``release``); see :func:`require_pass`. A model that fails raises nothing here.

    Raises:
        GateRefused: the two assessments were made under different protocols.
        InputError: an assessment is of another model than it should be.
        RegistryError: the registry is down.
    """
    if assessment.manifest.inputs.get("model") != model.digest:
        raise InputError(
            f"{assessment.short} does not measure {model.short}", remedy="pass the assessment of this model"
        )
    if standing := find(ctx, model, assessment):
        return standing
    registry = Registry(ctx)
    with registry.locked():
        _require_present_champion(registry, model, champion_assessment)
        record = _judge(ctx, model, assessment, champion_assessment)
        content = read_record(record)
        registry.register(record, content, model, assessment)
        registry.carry_out(record, content)
    return record


def find(ctx: Context, model: Artifact, assessment: Artifact | None = None) -> Artifact | None:
    """The record of an earlier judgement of ``model`` under this policy, if it still stands; else None.

    It stands when it was carried out, or when the champion is still the one it was compared with. What a kill
    left undone of it is completed. With ``assessment`` only a judgement of that one counts.

    Raises:
        RegistryError: the registry is down.
    """
    registry = Registry(ctx)
    if not registry.exists:
        return None
    with registry.locked():
        record = registry.record_of(model, assessment, policy_digest(ctx))
        if record is not None:
            content = read_record(record)
            registry.carry_out(record, content)
            say(f"release: already judged, verdict {content['verdict']} ({record.short})")
        return record


def read_record(record: Artifact) -> dict[str, Any]:
    """The gate's record as plain values: verdict, reasons, comparisons, metrics, stamp and digests."""
    if record.manifest.kind != "release":
        raise ArtifactError(f"{record.short} is no release record", remedy="pass what release returned")
    content: dict[str, Any] = json.loads(record.path("record.json").read_text(encoding="utf-8"))
    return content


def require_pass(record: Artifact) -> None:
    """Do nothing if the gate passed the model of this record.

    Raises:
        GateRefused: it did not; the message says why.
    """
    content = read_record(record)
    if content["verdict"] != "pass":
        raise GateRefused(
            f"The gate did not pass model {content['model'][:12]}: {'; '.join(content['failures'])}",
            remedy="train longer, gather more data or change the release section of the recipe; "
            "the champion is unchanged",
        )


def weights_digest(model: Artifact) -> str:
    """SHA-256 over the names and checksums of a model's weight files."""
    files = {n: f.sha256 for n, f in model.manifest.files.items() if n.endswith(".safetensors")}
    return sha256_text(canonical_json(files))


def policy_digest(ctx: Context) -> str:
    """SHA-256 of the release section of the recipe."""
    return sha256_text(canonical_json(ctx.recipe.release.identity()))


def _judge(ctx: Context, model: Artifact, assessment: Artifact, champion_assessment: Artifact | None) -> Artifact:
    policy = ctx.recipe.release
    inputs = {"model": model, "assessment": assessment}
    if champion_assessment is not None:
        inputs["champion"] = champion_assessment

    def build(draft: Draft) -> Outcome:
        one = Assessment.read(assessment)
        two = Assessment.read(champion_assessment) if champion_assessment else None
        verdict = decide(one, two, policy)
        content = verdict.as_json() | {
            "primary": primary_set(one),
            "metrics": _metrics(one),
            "champion_metrics": _metrics(two) if two else None,
            "stamp": one.stamp,
            "model": model.digest,
            "weights": weights_digest(model),
            "data": model.manifest.inputs.get("dataset", ""),
            "lineage": model.manifest.inputs,
            "assessment": assessment.digest,
            "judge": assessment.manifest.inputs["judge"],
            "champion": champion_assessment
            and {"model": champion_assessment.manifest.inputs["model"], "assessment": champion_assessment.digest},
            "policy": policy.identity(),
            "policy_digest": policy_digest(ctx),
        }
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (draft.dir / "record.json").write_text(text, encoding="utf-8")
        return Outcome(evidence={"verdict": verdict.verdict, "reasons": verdict.reasons})

    return run_stage(ctx, "release", inputs, {"policy": policy.identity()}, build)


def _metrics(assessment: Assessment) -> dict[str, Any]:
    return {name: {k: v.as_json() for k, v in s.metrics.items()} for name, s in assessment.sets.items()}


def _require_present_champion(registry: Registry, model: Artifact, champion_assessment: Artifact | None) -> None:
    present = registry.champion()
    digest = present.tags.get("model_digest") if present else None
    measured = champion_assessment.manifest.inputs.get("model") if champion_assessment else None
    if measured != digest and not (measured is None and digest == model.digest):
        raise InputError(
            f"The champion's assessment is of {measured[:12] if measured else 'nothing'}",
            expected=f"of the present champion, {digest[:12] if digest else 'which there is none of'}",
            remedy="assess the present champion under the same judge, then release again",
        )
