"""Stage 5: the gate's record. What the registry shows of it is in :mod:`components.evaluation.registry`.

The record is an artifact: made once, without times or version numbers in it. The registry (an MLflow run, a
model version with tags, the alias ``champion``) is put right every time the stage runs, so that a kill in
between leaves nothing half done for long.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from components.contracts.errors import ArtifactError, GateRefused, InputError
from components.contracts.recipe import Release
from components.evaluation.assess import Assessment, assess
from components.evaluation.gate import decide, primary_set
from components.evaluation.registry import Registry, champion, force, require_champion, rollback, versions
from components.evaluation.signing import Keys
from components.evaluation.vouching import policy_digest, weights_digest, who_and_when
from components.runtime.progress import say
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

__all__ = [
    "champion",
    "find",
    "force",
    "judge_and_release",
    "policy_digest",
    "read_record",
    "release",
    "require_champion",
    "require_pass",
    "rollback",
    "rotate_key",
    "versions",
    "weights_digest",
]


def release(
    ctx: Context,
    model: Artifact,
    assessment: Artifact,
    champion_assessment: Artifact | None = None,
    more: Sequence[tuple[Artifact, Artifact]] = (),
) -> Artifact:
    """Judge ``model``, register it with the verdict, and make it the champion if it passed.

    A model is judged once for an assessment, a policy and a champion: running again finds the record and only
    completes what the registry lacks of it. A model that was champion and was replaced or rolled back since
    is not made champion again.

    Args:
        assessment: of ``model``.
        champion_assessment: of the present champion under the same judge; None when there is no champion, or
            when ``model`` is the champion.
        more: further turns of both, where the first did not tell.

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
        registry.mend()
        _require_present_champion(registry, model, champion_assessment)
        record = _judge(ctx, model, assessment, champion_assessment, more)
        content = read_record(record)
        registry.register(record, content, model, assessment)
        registry.carry_out(record, content)
    return record


def judge_and_release(ctx: Context, model: Artifact, judge: Artifact) -> Artifact:
    """Measure ``model`` and the present champion under ``judge``, as often as it takes to tell, and :func:`release`.

    Where the first pictures do not tell, both draw the same prompts again from other seeds, up to
    ``release.max_turns`` times in all; what then still is inconclusive fails.
    """
    assessment = assess(ctx, model, judge)
    if judged := find(ctx, model, assessment):
        return judged
    if (present := champion(ctx)) is None:
        return release(ctx, model, assessment)
    theirs = assess(ctx, present[1], judge)
    policy = ctx.recipe.release
    more: list[tuple[Artifact, Artifact]] = []
    for turn in range(1, policy.max_turns):
        if not decide(*_joined(assessment, theirs, more), policy).undecided:
            break
        say(f"release: not told apart after {turn} of {policy.max_turns} turns; both draw again from other seeds")
        more.append((assess(ctx, model, judge, turn), assess(ctx, present[1], judge, turn)))
    return release(ctx, model, assessment, theirs, more)


def rotate_key(ctx: Context) -> str:
    """Sign with a new key from now on; the former one still verifies. Returns the new key's name."""
    return Keys(ctx.home).rotate()


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
        registry.mend()
        record = registry.record_of(model, assessment, policy_digest(ctx.recipe.release))
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


def _judge(
    ctx: Context,
    model: Artifact,
    assessment: Artifact,
    champion_assessment: Artifact | None,
    more: Sequence[tuple[Artifact, Artifact]],
) -> Artifact:
    policy = ctx.recipe.release
    inputs = {"model": model, "assessment": assessment}
    if champion_assessment is not None:
        inputs["champion"] = champion_assessment
    for turn, (own, others) in enumerate(more, 1):
        inputs |= {f"assessment_{turn}": own, f"champion_{turn}": others}

    def build(draft: Draft) -> Outcome:
        one, two = _joined(assessment, champion_assessment, more)
        verdict = decide(one, two, policy)
        told = verdict.as_json()
        if verdict.undecided:
            told["verdict"] = "fail"
            told["failures"].insert(0, _budget_spent(one, 1 + len(more), policy))
            told["reasons"].insert(0, told["failures"][0])
        content = told | {
            "turns": 1 + len(more),
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
            "policy_digest": policy_digest(policy),
        }
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (draft.dir / "record.json").write_text(text, encoding="utf-8")
        evidence = {"verdict": content["verdict"], "reasons": content["reasons"]}
        return Outcome(evidence=evidence, circumstance=who_and_when())

    return run_stage(ctx, "release", inputs, {"policy": policy.identity()}, build)


def _joined(
    assessment: Artifact, champion_assessment: Artifact | None, more: Sequence[tuple[Artifact, Artifact]]
) -> tuple[Assessment, Assessment | None]:
    """Both sides over all turns."""
    one = Assessment.joined([Assessment.read(a) for a in (assessment, *(own for own, _ in more))])
    if champion_assessment is None:
        return one, None
    return one, Assessment.joined([Assessment.read(a) for a in (champion_assessment, *(other for _, other in more))])


def _budget_spent(one: Assessment, turns: int, policy: Release) -> str:
    drawn = sum(len(found.seeds) for found in one.sets.values())
    budget = (
        f"the budget of release.max_turns={policy.max_turns} is spent" if turns >= policy.max_turns else "no more drawn"
    )
    return f"inconclusive after {turns} turns and {drawn} pictures of each model; {budget}"


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
