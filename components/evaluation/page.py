"""The page about an assessment: numbers with their intervals and stamp, and the pictures behind them.

One self-contained HTML file, which fetches nothing and needs no script to be read. It is a view: all that it says
stands in artifacts, equal artifacts give an equal page, and it lies beside the store. It shows training pictures, so
`atelier forget` removes it when samples are taken out of a dataset.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts.recipe import Release
from components.evaluation.assess import Assessment
from components.evaluation.gate import decide, primary_set
from components.evaluation.page_pictures import Pictures, varied
from components.evaluation.protocol import stamp_digest
from components.runtime.stage import Context
from components.runtime.storage import Artifact, write_bytes

if TYPE_CHECKING:
    from components.runtime.tracking import ModelVersion

Numbers = dict[str, dict[str, dict[str, Any]]]  # {set: {metric: {value, low, high, n}}}
ASSESSMENT_PAGE, RELEASE_PAGE = "assessment.html", "release.html"  # in the recipe's folder

_SHARES = ("fidelity", "r_precision", "precision", "recall", "coverage", "memorised", "leaked", "safe")  # of 0..1
_LOWER = ("frechet", "fid", "kid", "cmmd", "memorised", "leaked", "latency", "latency_batched")  # better when lower
_TILES = (
    "fidelity", "r_precision", "fid", "frechet", "clip_score", "memorised", "latency_batched", "safe", "diversity",
)  # fmt: skip
_MEANING = {
    "fidelity": "pictures that show all that was asked for",
    "r_precision": "pictures whose own prompt is the nearest of 100",
    "clip_score": "100 × cosine of picture and prompt",
    "frechet": "distance to held-out pictures, as normal distributions",
    "frechet_vs_real": "that distance over the one of as many training pictures; well below 1 is a leak",
    "fid": "Fréchet distance in Inception-v3 features",
    "kid": "distance to held-out pictures by a cubic kernel",
    "cmmd": "distance to held-out pictures in CLIP's space",
    "inception_score": "sure and various classes by Inception-v3",
    "precision": "pictures that lie among the held-out ones",
    "recall": "held-out pictures that lie among the drawn ones",
    "density": "how densely held-out pictures lie around the drawn ones",
    "coverage": "held-out pictures with a drawn one near by",
    "diversity": "how much pictures of one prompt differ",
    "memorised": "pictures nearer to a training picture than held-out ones are",
    "leaked": "pictures nearer to a held-out picture than training ones are",
    "safe": "pictures that no blocked concept was found in",
    "latency": "seconds a picture, one at a time",
    "latency_batched": "seconds a picture, in a full batch",
}


@dataclass(frozen=True)
class Whisker:
    """A number with its interval, placed on a scale of 0..100."""

    value: float
    low: float
    high: float
    n: int
    at: float
    start: float
    width: float
    bounded: bool  # False where no interval is known


@dataclass(frozen=True)
class Line:
    """A metric of a set, of the challenger and perhaps the champion, on one scale."""

    metric: str
    meaning: str
    lower_is_better: bool
    own: Whisker
    champion: Whisker | None


def write_page(
    ctx: Context,
    assessment: Artifact,
    path: str | Path,
    *,
    champion: Artifact | None = None,
    record: Mapping[str, Any] | None = None,
    version: ModelVersion | None = None,
) -> Path:
    """Write the page about ``assessment`` to ``path``.

    Args:
        champion: the champion's assessment by the same judge, to be shown side by side.
        record: the gate's, see :func:`components.evaluation.release.read_record`; without it, and with ``champion``,
            the page says what the gate would decide on these pictures.
        version: the registered one, where there is one.

    Raises:
        ArtifactError: an assessment, or its judge, is not in the store or damaged.
        GateRefused: the two were measured under different protocols; the message names the difference.
    """
    import jinja2

    judge = ctx.store.by_digest("judge", assessment.manifest.inputs["judge"])
    pictures = Pictures(assessment)
    counts = Counter(row["set"] for row in pictures.rows)  # in the order in which the sets were drawn
    numbers, stamp = numbers_of(assessment)
    numbers = {name: numbers[name] for name in dict.fromkeys([*counts, *numbers]) if name in numbers}
    theirs = numbers_of(champion)[0] if champion else {}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.render(
        name=ctx.recipe.name,
        model=assessment.manifest.inputs["model"],
        assessment=assessment.digest,
        champion=champion and champion.manifest.inputs["model"],
        version=version,
        gate=_gate(assessment, champion, record, ctx.recipe.release),
        record=record,
        tiles=_tiles(numbers),
        sets={found: _lines(lines, theirs.get(found, {})) for found, lines in numbers.items()},
        bars={found: bars for found in numbers if (bars := _bars(assessment, found, numbers[found]))},
        stamp=sorted(stamp.items()),
        stamp_digest=stamp_digest(stamp),
        latency=_latency(assessment),
        sheet=pictures.sheet(),
        counts=counts,
        neighbours=pictures.neighbours(ctx, judge),
        pairs=pictures.pairs(Pictures(champion)) if champion else None,
        varied=varied(assessment),
    )
    write_bytes(str(path), page.encode())
    return Path(path)


def metrics_of(assessment: Artifact) -> dict[str, float]:
    """All numbers of an assessment by ``set/metric``; the bounds of their intervals as ``….low`` and ``….high``."""
    found = {}
    for name, metrics in numbers_of(assessment)[0].items():
        for metric, number in metrics.items():
            found[f"{name}/{metric}"] = float(number["value"])
            found |= {f"{name}/{metric}.{side}": float(number[side]) for side in ("low", "high")}
    return found


def numbers_of(assessment: Artifact) -> tuple[Numbers, dict[str, Any]]:
    """The numbers of an assessment by set and metric, latency among those of the primary set, and their stamp."""
    found: dict[str, Any] = json.loads(assessment.path("metrics.json").read_text(encoding="utf-8"))
    stamp = found.pop("stamp")
    numbers: Numbers = {name: dict(metrics) for name, metrics in found.items()}
    if timed := _latency(assessment):
        first = numbers[primary_set(Assessment.read(assessment))]
        for metric, key in (("latency", "alone"), ("latency_batched", "batched")):
            if key in timed:
                first[metric] = {**timed[key], "value": timed[key]["seconds_an_image"]}
    return numbers, stamp


def _latency(assessment: Artifact) -> dict[str, Any]:
    name = "circumstance/latency.json"
    if name not in assessment.manifest.files:
        return {}
    found: dict[str, Any] = json.loads(assessment.path(name).read_text(encoding="utf-8"))
    return found


def _base(metric: str) -> str:
    """A metric without the name of its extractor or attribute."""
    return metric.partition(".")[0]


def _lines(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Line]:
    """All metrics of a set but those by attribute, which are drawn as bars; in the order of ``_MEANING``."""
    found, order = [], list(_MEANING)
    for metric, number in sorted(own.items(), key=lambda each: (_place(order, _base(each[0])), each[0])):
        if metric.startswith("fidelity."):
            continue
        other = theirs.get(metric)
        sides = [each for each in (number, other) if each]
        top = max(float(each["high"]) for each in sides)
        low = min(0.0, *(float(each["low"]) for each in sides))
        scale = (0.0, 1.0) if _base(metric) in _SHARES else (low, top * 1.08 if top > low else low + 1)
        meaning = _MEANING.get(_base(metric), "")
        name = metric.partition(".")[2]
        found.append(
            Line(
                metric,
                f"{meaning} ({name})" if meaning and name else meaning,
                _base(metric) in _LOWER,
                _whisker(number, scale),
                _whisker(other, scale) if other else None,
            )
        )
    return found


def _place(order: list[str], metric: str) -> int:
    return order.index(metric) if metric in order else len(order)


def _whisker(number: Mapping[str, Any], scale: tuple[float, float]) -> Whisker:
    least, greatest = scale

    def place(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - least) / (greatest - least)))

    value, low, high = (float(number[k]) for k in ("value", "low", "high"))
    start = place(low)
    return Whisker(value, low, high, int(number["n"]), place(value), start, place(high) - start, high > low)


def _bars(assessment: Artifact, name: str, numbers: Mapping[str, Any]) -> dict[str, list[tuple[str, Whisker]]]:
    """By heading: a bar for each attribute that the grader looks at, and for each category of prompts."""
    found = {}
    if said := {m.partition(".")[2]: n for m, n in numbers.items() if m.startswith("fidelity.")}:
        found["Right, by what was asked for"] = _sorted(said)
    if "categories.json" in assessment.manifest.files:
        text = assessment.path("categories.json").read_text(encoding="utf-8")
        groups: dict[str, Any] = json.loads(text).get(name, {})
        for metric, title in (("fidelity", "Right"), ("r_precision", "Own prompt the nearest"), ("safe", "Safe")):
            has = {label: group[metric] for label, group in groups.items() if metric in group}
            if len(has) > 1:
                found[f"{title}, by category of the prompt"] = _sorted(has)
    return found


def _sorted(numbers: Mapping[str, Any]) -> list[tuple[str, Whisker]]:
    """From the worst to the best."""
    bars = [(name, _whisker(number, (0.0, 1.0))) for name, number in numbers.items()]
    return sorted(bars, key=lambda bar: (bar[1].value, bar[0]))


def _tiles(numbers: Numbers) -> list[tuple[str, str, str]]:
    """The numbers that one wants to see first: metric, value, and interval."""
    first = next(iter(numbers.values()), {})
    found = []
    for metric in [m for m in _TILES if m in first][:6]:
        n = first[metric]
        unit = " s" if metric.startswith("latency") else ""
        if _base(metric) in _SHARES:
            found.append((metric, f"{n['value']:.1%}", f"{n['low']:.1%} to {n['high']:.1%}"))
        else:
            found.append((metric, f"{n['value']:.3g}{unit}", f"{n['low']:.3g} to {n['high']:.3g}"))
    return found


def _gate(
    assessment: Artifact, champion: Artifact | None, record: Mapping[str, Any] | None, policy: Release
) -> Mapping[str, Any] | None:
    """What the gate said, or would say: verdict, failures, reasons and comparisons."""
    if record is not None:
        return record
    if champion is None:
        return None
    return decide(Assessment.read(assessment), Assessment.read(champion), policy).as_json()
