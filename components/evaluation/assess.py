"""Stage 4: a model under a judge gives an assessment.

Files:

* ``metrics.json``: ``{set: {metric: {value, low, high, n, stamp}}, "stamp": {...}}``; the stamp beside a
  number is the digest of the one below
* ``per_prompt.parquet``: what was drawn for each prompt, with verdict and reason
* ``sheet.png``: a sample of it to look at
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts.errors import ArtifactError
from components.evaluation.generation import Drawn, draw_all, pipeline_folder
from components.evaluation.intervals import Estimate, bootstrap_mean, wilson
from components.evaluation.judge import Judge
from components.evaluation.metrics import clip_scores, frechet_estimate, has_rivals, retrieved
from components.evaluation.prompts import meaning
from components.evaluation.protocol import ONE_PASS, Stamp, sampler_of, stamp_digest
from components.evaluation.sheet import Sample, draw_sheet
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

PER_PROMPT_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("index", pa.int32()),  # of the prompt in its set
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("correct", pa.bool_()),  # the grader's verdict, null where the prompt is not of the embedded world
        ("attributes", pa.string()),  # JSON {attribute: right}, null likewise
        ("reason", pa.string()),  # why it is not correct; empty when it is, null likewise
        ("retrieved", pa.bool_()),  # R-precision hit, null when all prompts of the set mean the same
        ("clip_score", pa.float32()),  # 0..100
        ("image", pa.binary()),  # PNG
    ]
)


@dataclass(frozen=True)
class SetResult:
    """One prompt set of an assessment. Shares per prompt are 0 or 1; NaN where nothing was measured."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    correct: npt.NDArray[np.float64]
    retrieved: npt.NDArray[np.float64]
    metrics: dict[str, Estimate]

    @classmethod
    def joined(cls, parts: Sequence[SetResult]) -> SetResult:
        """The same prompts drawn again from other seeds; see :meth:`Assessment.joined`."""
        correct = np.concatenate([part.correct for part in parts])
        hits = np.concatenate([part.retrieved for part in parts])
        metrics = dict(parts[0].metrics)
        if not np.isnan(correct).all():
            metrics["fidelity"] = wilson(int(np.nansum(correct)), int((~np.isnan(correct)).sum()))
        if not np.isnan(hits).all():
            metrics["r_precision"] = bootstrap_mean(hits[~np.isnan(hits)])
        prompts = tuple(prompt for part in parts for prompt in part.prompts)
        return cls(prompts, tuple(seed for part in parts for seed in part.seeds), correct, hits, metrics)


@dataclass(frozen=True)
class Assessment:
    """An assessment, read: the stamp of its numbers and the results by prompt set."""

    model: str  # digest of the model artifact
    stamp: Stamp
    sets: dict[str, SetResult]

    @classmethod
    def read(cls, artifact: Artifact) -> Assessment:
        """Open an assessment artifact.

        Raises:
            ArtifactError: it is none.
        """
        if artifact.manifest.kind != "assessment":
            raise ArtifactError(f"{artifact.short} is no assessment", remedy="pass what assess returned")
        metrics = json.loads(artifact.path("metrics.json").read_text())
        stamp = metrics.pop("stamp")
        columns = ["set", "prompt", "seed", "correct", "retrieved"]
        table = pq.read_table(artifact.path("per_prompt.parquet"), columns=columns).to_pydict()
        sets = {}
        for name, numbers in metrics.items():
            at = [i for i, owner in enumerate(table["set"]) if owner == name]
            sets[name] = SetResult(
                tuple(table["prompt"][i] for i in at),
                tuple(table["seed"][i] for i in at),
                np.array([table["correct"][i] for i in at], dtype=np.float64),  # None becomes NaN
                np.array([table["retrieved"][i] for i in at], dtype=np.float64),
                {k: Estimate(v["value"], v["low"], v["high"], v["n"]) for k, v in numbers.items()},
            )
        return cls(artifact.manifest.inputs["model"], stamp, sets)

    @classmethod
    def joined(cls, turns: Sequence[Assessment]) -> Assessment:
        """All turns of one model under one judge: shares over all pictures, other numbers of the first turn."""
        first = turns[0]
        if any(
            (turn.model, turn.stamp, list(turn.sets)) != (first.model, first.stamp, list(first.sets)) for turn in turns
        ):
            raise ArtifactError("Turns of different assessments cannot be joined", expected="one model and one judge")
        if len(turns) == 1:
            return first
        return cls(
            first.model,
            first.stamp,
            {name: SetResult.joined([turn.sets[name] for turn in turns]) for name in first.sets},
        )


def assess(ctx: Context, model: Artifact, judge: Artifact, turn: int = 0) -> Artifact:
    """Measure ``model`` under ``judge``; the same for any number of workers, and resumed after a kill.

    Args:
        turn: from 1 on, the same prompts are drawn again from seeds of their own.

    Raises:
        ArtifactError: the model or the judge is damaged.
        RuntimeUnavailable: Ray cannot be started, or its workers died.
    """

    def build(draft: Draft) -> Outcome:
        rules = Judge.read(judge)
        drawn = draw_all(model, rules, ctx.recipe.run, draft.state, turn)
        stamp = rules.stamp(_sampler(model))
        numbers: dict[str, Any] = {}
        tables = []
        for name, result in drawn.items():
            hits, measured = measure(result, rules, name)
            digest = stamp_digest(stamp)
            numbers[name] = {k: v.as_json() | {"stamp": digest} for k, v in measured.items()}
            tables.append(_rows(name, rules, result, hits, turn))
        table = pa.concat_tables(tables)
        text = json.dumps(numbers | {"stamp": stamp}, indent=2, sort_keys=True)
        (draft.dir / "metrics.json").write_text(text + "\n")
        pq.write_table(table, draft.dir / "per_prompt.parquet", compression="zstd")
        sheet = _sheet(drawn, rules, ctx.recipe.assess.sheet, numbers, stamp["sampler"])
        sheet.save(draft.dir / "sheet.png", optimize=True)
        return Outcome(
            counts={f"{name}_pictures": len(r.pictures) for name, r in drawn.items()},
            circumstance={"workers": ctx.recipe.run.workers},
        )

    return run_stage(
        ctx,
        "assessment",
        {"model": model, "judge": judge},
        {"sheet": ctx.recipe.assess.sheet} | ({"turn": turn} if turn else {}),
        build,
        "assess",
    )


def measure(drawn: Drawn, judge: Judge, name: str) -> tuple[npt.NDArray[np.bool_] | None, dict[str, Estimate]]:
    """All metrics of one prompt set, and the R-precision hits behind one of them.

    ``fidelity`` (all attributes right) and ``fidelity.<attribute>`` only over prompts of the embedded world;
    ``frechet``, ``clip_score`` and ``r_precision`` over all.
    """
    prompts = judge.prompts[name]
    found: dict[str, Estimate] = {}
    graded = [grade for grade in drawn.grades if grade is not None]
    if graded:
        found["fidelity"] = wilson(sum(g["correct"] for g in graded), len(graded))
        said = Counter(a for g in graded for a in g["attributes"])
        right = Counter(a for g in graded for a, ok in g["attributes"].items() if ok)
        found |= {f"fidelity.{a}": wilson(right[a], said[a]) for a in sorted(said)}
    found["frechet"] = frechet_estimate(drawn.features, judge.reference[name])
    found["clip_score"] = bootstrap_mean(clip_scores(drawn.images, drawn.texts))
    keys = [meaning(p) for p in prompts]
    # of a picture with several captions none is a mismatch; a prompt of no picture stands for itself
    owners = judge.pictures.get(name) or [None] * len(keys)
    pictures = [key if owner is None else (owner,) for key, owner in zip(keys, owners, strict=True)]
    if not has_rivals(keys, pictures):
        return None, found
    candidates, seed = judge.protocol["r_precision_candidates"], judge.protocol["seed_base"]
    hits, _ = retrieved(drawn.images, drawn.texts, keys, candidates, seed, pictures)
    found["r_precision"] = bootstrap_mean(hits)
    return hits, found


def _sampler(model: Artifact) -> str:
    file = pipeline_folder(model) / "scheduler" / "scheduler_config.json"
    return sampler_of(file.read_text() if file.exists() else None)


def _rows(name: str, judge: Judge, drawn: Drawn, hits: npt.NDArray[np.bool_] | None, turn: int) -> pa.Table:
    from PIL import Image

    def png(picture: npt.NDArray[np.uint8]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        return buffer.getvalue()

    n, grades = len(drawn.pictures), drawn.grades
    return pa.Table.from_pydict(
        {
            "set": [name] * n,
            "index": list(range(n)),
            "prompt": judge.prompts[name],
            "seed": judge.seeds(name, turn),
            "correct": [g and g["correct"] for g in grades],
            "attributes": [g and json.dumps(g["attributes"], sort_keys=True) for g in grades],
            "reason": [g and g["reason"] for g in grades],
            "retrieved": [None] * n if hits is None else hits.tolist(),
            "clip_score": clip_scores(drawn.images, drawn.texts),
            "image": [png(p) for p in drawn.pictures],
        },
        schema=PER_PROMPT_SCHEMA,
    )


def _sheet(drawn: dict[str, Drawn], judge: Judge, count: int, numbers: dict[str, Any], sampler: str) -> Any:
    """The first prompts of each set in equal shares: sheets of two models show the same prompts."""
    samples, notes = [], []
    for position, (name, result) in enumerate(drawn.items()):
        share = count // len(drawn) + (position < count % len(drawn))
        rows = zip(result.pictures, judge.prompts[name], result.grades, strict=True)
        for picture, prompt, grade in list(rows)[:share]:
            samples.append(Sample(picture, prompt, None if grade is None else bool(grade["correct"])))
        best = "fidelity" if "fidelity" in numbers[name] else "r_precision"
        if number := numbers[name].get(best):
            low, high = number["low"], number["high"]
            notes.append(f"{name}: {best} {number['value']:.3f} ({low:.3f} to {high:.3f}, n {number['n']})")
    p = judge.protocol
    rule = f"{p['steps']} steps, guidance {p['guidance_scale']:g}" if sampler != ONE_PASS else "one pass"
    return draw_sheet(samples, "Samples of the assessment", " · ".join([*notes, rule]))
