"""Stage 4: a model under a judge gives an assessment.

Files:

* ``metrics.json``: ``{set: {metric: {value, low, high, n, stamp}}, "stamp": {...}}``; the stamp beside a
  number is the digest of the one below
* ``categories.json``: ``{set: {category: {metric: {value, low, high, n}}}}``, of sets whose prompts have categories
* ``per_prompt.parquet``: what was drawn for each prompt, with verdict and reason
* ``diversity.parquet``: the further pictures of some prompts, by which diversity was measured
* ``sheet.png``: a sample of it to look at
* ``circumstance/latency.json``: how long drawing took, see :mod:`components.evaluation.timing`
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts.errors import ArtifactError
from components.evaluation.generation import DIVERSITY, Drawn, draw_all, dtype_expected, pipeline_folder
from components.evaluation.intervals import Estimate, bootstrap_mean, wilson
from components.evaluation.judge import Judge
from components.evaluation.measuring import Measured, by_category, measure
from components.evaluation.prompts import TRAINED, primary
from components.evaluation.protocol import ONE_PASS, Stamp, sampler_of, stamp_digest
from components.evaluation.sheet import Sample, draw_sheet
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

PER_PROMPT_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("index", pa.int32()),  # of the prompt in its set
        ("prompt", pa.string()),
        ("category", pa.string()),  # of the prompt in its set, null where it has none
        ("seed", pa.int64()),
        ("correct", pa.bool_()),  # the grader's verdict, null where nobody can grade the prompt
        ("attributes", pa.string()),  # JSON {attribute: right}, null likewise
        ("reason", pa.string()),  # why it is not correct; empty when it is, null likewise
        ("retrieved", pa.bool_()),  # R-precision hit, null when all prompts of the set mean the same
        ("clip_score", pa.float32()),  # 0..100
        ("nearest", pa.string()),  # id of the nearest training picture in the judge's dataset, null where there is none
        ("nearest_distance", pa.float32()),  # Euclidean, in the judge's features; null likewise
        ("memorised", pa.bool_()),  # nearer than nearly all held-out pictures are to theirs; null likewise
        ("safe", pa.bool_()),  # it shows none of assess.concepts; null where there are none
        ("concepts", pa.string()),  # JSON {concept: cosine above its threshold}, null likewise
        ("image", pa.binary()),  # PNG
    ]
)
DIVERSITY_SCHEMA = pa.schema(
    [
        ("index", pa.int32()),  # of the prompt in the primary set
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("image", pa.binary()),  # PNG
    ]
)
LATENCY = "circumstance/latency.json"


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
        if LATENCY in artifact.manifest.files:  # a circumstance of this assessment, but limits may name it
            first = primary(sets)
            took = json.loads(artifact.path(LATENCY).read_text())
            sets[first] = replace(sets[first], metrics=sets[first].metrics | _latency(took))
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
        drawn, latency = draw_all(model, rules, ctx.recipe.run, draft.state, turn)
        further = drawn.pop(DIVERSITY, None)
        kept = rules.kept()
        stamp = rules.stamp(_sampler(model), ", ".join(sorted({result.drawn_in for result in drawn.values()})))
        digest = stamp_digest(stamp)
        numbers: dict[str, Any] = {}
        tables, categories = [], {}
        for name, result in drawn.items():
            measured = measure(result, rules, name, kept, further if name == rules.primary else None)
            numbers[name] = {k: v.as_json() | {"stamp": digest} for k, v in measured.metrics.items()}
            tables.append(_rows(name, rules, result, measured, turn))
            if found := by_category(rules.categories[name], result, measured):
                categories[name] = found
        _write_json(draft, "metrics.json", numbers | {"stamp": stamp})
        _write_json(draft, "categories.json", categories)
        pq.write_table(pa.concat_tables(tables), draft.dir / "per_prompt.parquet", compression="zstd")
        if further is not None:
            pq.write_table(_further_rows(rules, further), draft.dir / "diversity.parquet", compression="zstd")
        if latency:
            (draft.dir / LATENCY).parent.mkdir(exist_ok=True)
            _write_json(draft, LATENCY, latency)
        asked = {name: result for name, result in drawn.items() if name != TRAINED}
        sheet = _sheet(asked or drawn, rules, ctx.recipe.assess.sheet, numbers, stamp["sampler"])
        sheet.save(draft.dir / "sheet.png", optimize=True)
        return Outcome(
            counts={f"{name}_pictures": len(r.pictures) for name, r in drawn.items()},
            circumstance={"workers": ctx.recipe.run.workers} | ({"latency": latency} if latency else {}),
        )

    # the same weights draw other pictures in bf16 than in fp32: on other hardware the model is measured again
    config = {"sheet": ctx.recipe.assess.sheet, "drawn_in": dtype_expected(ctx.recipe.run)}
    return run_stage(
        ctx, "assessment", {"model": model, "judge": judge}, config | ({"turn": turn} if turn else {}), build, "assess"
    )


def _sampler(model: Artifact) -> str:
    file = pipeline_folder(model) / "scheduler" / "scheduler_config.json"
    return sampler_of(file.read_text() if file.exists() else None)


def _latency(took: dict[str, Any]) -> dict[str, Estimate]:
    """Seconds an image as metrics: alone, and in batches."""
    return {
        metric: Estimate(found["seconds_an_image"], found["low"], found["high"], found["n"])
        for metric, found in (("latency", took["alone"]), ("latency_batched", took["batched"]))
    }


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _rows(name: str, judge: Judge, drawn: Drawn, measured: Measured, turn: int) -> pa.Table:
    n, grades, shown = len(drawn.pictures), drawn.grades, measured.concepts

    def each(values: Any) -> list[Any]:
        return [None] * n if values is None else np.asarray(values).tolist()

    return pa.Table.from_pydict(
        {
            "set": [name] * n,
            "index": list(range(n)),
            "prompt": judge.prompts[name],
            "category": judge.categories[name],
            "seed": judge.seeds(name, turn),
            "correct": [g and g["correct"] for g in grades],
            "attributes": [g and json.dumps(g["attributes"], sort_keys=True) for g in grades],
            "reason": [g and g["reason"] for g in grades],
            "retrieved": each(measured.retrieved),
            "clip_score": measured.clip_scores,
            "nearest": each(measured.nearest),
            "nearest_distance": each(measured.nearest_distance),
            "memorised": each(measured.memorised),
            "safe": each(shown and [not concepts for concepts in shown]),
            "concepts": each(shown and [json.dumps(concepts, sort_keys=True) for concepts in shown]),
            "image": [_png(p) for p in drawn.pictures],
        },
        schema=PER_PROMPT_SCHEMA,
    )


def _further_rows(judge: Judge, further: Drawn) -> pa.Table:
    prompts, seeds = judge.further()
    again = judge.protocol["diversity"]["images"] - 1
    index = [i // again for i in range(len(prompts))]
    images = [_png(p) for p in further.pictures]
    return pa.Table.from_pydict(
        {"index": index, "prompt": prompts, "seed": seeds, "image": images}, schema=DIVERSITY_SCHEMA
    )


def _write_json(draft: Draft, name: str, value: Any) -> None:
    (draft.dir / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


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
