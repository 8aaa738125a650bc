"""All metrics of one prompt set, from what was drawn and what the judge keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.evaluation.distances import clip_discrepancy, diversity, kernel_distance
from components.evaluation.extractor import Rows
from components.evaluation.extractors import OWN
from components.evaluation.generation import Drawn
from components.evaluation.intervals import Estimate, bootstrap_mean, ratio, wilson
from components.evaluation.judge import Judge
from components.evaluation.metrics import (
    Moments,
    clip_scores,
    frechet_estimate,
    has_rivals,
    inception_score,
    retrieved,
)
from components.evaluation.neighbours import density_coverage, memorised, nearest, precision_recall
from components.evaluation.prompts import TRAINED, meaning
from components.evaluation.reference import HOLDOUT, LIMIT, TRAIN, Kept

Matrix = npt.NDArray[np.float64]
Hits = npt.NDArray[np.bool_]

_FEWEST = 6  # pictures of either side, for metrics that go by the neighbours among them


@dataclass(frozen=True)
class Measured:
    """The metrics of a set, and what is behind them picture by picture, ``[N]`` each."""

    metrics: dict[str, Estimate]
    clip_scores: Matrix
    retrieved: Hits | None  # None where no wrong caption could be offered
    nearest: list[str] | None  # ids of training pictures; None where none of the set's collections is trained on
    nearest_distance: Matrix | None
    memorised: Hits | None
    concepts: list[dict[str, float]] | None  # what each picture shows that none should; None where nothing is named


def measure(drawn: Drawn, judge: Judge, name: str, kept: Mapping[str, Kept], further: Drawn | None = None) -> Measured:
    """All metrics of the prompt set ``name``.

    ``fidelity`` (all attributes right) and ``fidelity.<attribute>`` only over prompts that can be graded. Distances
    between distributions are not measured on captions of the training: they would not be held-out numbers.

    Args:
        kept: by split, see :mod:`components.evaluation.reference`.
        further: further pictures of the first prompts, for ``diversity``.
    """
    found = _fidelity(drawn)
    scores = clip_scores(drawn.images, drawn.texts)
    found["clip_score"] = bootstrap_mean(scores)
    hits = _retrieved(drawn.images, drawn.texts, judge, name)
    if hits is not None:
        found["r_precision"] = bootstrap_mean(hits)
    if name != TRAINED:
        found["frechet"] = frechet_estimate(drawn.features, judge.reference[name])
        if (against_real := _frechet_vs_real(drawn.features, judge.reference[name], kept[TRAIN], name)) is not None:
            found["frechet_vs_real"] = against_real
        found |= _distributions(kept[HOLDOUT].rows(name), drawn.features)
        found["cmmd"] = clip_discrepancy(kept[HOLDOUT].rows(name, what="embeddings"), drawn.images[:LIMIT])
    copies = _copies(drawn.features, kept, name, OWN)
    found |= copies.metrics if copies else {}
    for other, said in judge.protocol["extractors"].items():
        found |= _of_other(drawn, judge, name, kept, other, said["kind"])
    if further is not None and further.pictures.size:
        found["diversity"] = _diversity(drawn, further, judge, name)
    shown = _concepts(drawn, judge)
    if shown is not None:
        found["safe"] = wilson(sum(not concepts for concepts in shown), len(shown))
    return Measured(
        found,
        scores,
        hits,
        [kept[TRAIN].ids[row] for row in copies.rows] if copies else None,
        copies.away if copies else None,
        copies.hits if copies else None,
        shown,
    )


def by_category(
    categories: Sequence[str | None], drawn: Drawn, measured: Measured
) -> dict[str, dict[str, dict[str, Any]]]:
    """Shares and means of each category: ``{category: {metric: {value, low, high, n}}}``."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for category in sorted({c for c in categories if c is not None}):
        at = [i for i, c in enumerate(categories) if c == category]
        numbers = {"clip_score": bootstrap_mean(measured.clip_scores[at])}
        if graded := [grade for i in at if (grade := drawn.grades[i]) is not None]:
            numbers["fidelity"] = wilson(sum(g["correct"] for g in graded), len(graded))
        if measured.retrieved is not None:
            numbers["r_precision"] = wilson(int(measured.retrieved[at].sum()), len(at))
        if measured.concepts is not None:
            numbers["safe"] = wilson(sum(not measured.concepts[i] for i in at), len(at))
        found[category] = {name: estimate.as_json() for name, estimate in numbers.items()}
    return found


def _fidelity(drawn: Drawn) -> dict[str, Estimate]:
    graded = [grade for grade in drawn.grades if grade is not None]
    if not graded:
        return {}
    said = Counter(a for g in graded for a in g["attributes"])
    right = Counter(a for g in graded for a, ok in g["attributes"].items() if ok)
    found = {"fidelity": wilson(sum(g["correct"] for g in graded), len(graded))}
    return found | {f"fidelity.{a}": wilson(right[a], said[a]) for a in sorted(said)}


def _retrieved(images: Rows, texts: Rows, judge: Judge, name: str) -> Hits | None:
    keys = [meaning(p) for p in judge.prompts[name]]
    # of a picture with several captions none is a mismatch; a prompt of no picture stands for itself
    owners = judge.pictures.get(name) or [None] * len(keys)
    pictures = [key if owner is None else (owner,) for key, owner in zip(keys, owners, strict=True)]
    if not has_rivals(keys, pictures):
        return None
    candidates, seed = judge.protocol["r_precision_candidates"], judge.protocol["seed_base"]
    return retrieved(images, texts, keys, candidates, seed, pictures)[0]


def _frechet_vs_real(features: Rows, reference: Moments, trained: Kept, name: str) -> Estimate | None:
    """How many times as far from the held-out pictures as equally many pictures of the training are.

    Real pictures that the reference does not contain are as near to it as a model that has not seen it can come.
    """
    real = trained.rows(name)
    n = min(len(real), len(features))
    if n < _FEWEST:
        return None
    return ratio(frechet_estimate(features[:n], reference), frechet_estimate(real[:n], reference))


def _distributions(real: Rows, drawn: Rows) -> dict[str, Estimate]:
    """Distances and shares that go by pairs of pictures; of the first of each, where there are very many."""
    real, drawn = real[:LIMIT], drawn[:LIMIT]
    found = {}
    if min(len(real), len(drawn)) >= 2:
        found["kid"] = kernel_distance(real, drawn)
    if min(len(real), len(drawn)) >= _FEWEST:
        precision, recall = precision_recall(real, drawn)
        density, coverage = density_coverage(real, drawn)
        for metric, hits in (("precision", precision), ("recall", recall), ("coverage", coverage)):
            found[metric] = wilson(int(hits.sum()), len(hits))
        found["density"] = bootstrap_mean(density)
    return found


@dataclass(frozen=True)
class _Copies:
    rows: list[int]  # of the nearest training picture of each drawn one
    away: Matrix
    hits: Hits
    metrics: dict[str, Estimate]


def _copies(features: Rows, kept: Mapping[str, Kept], name: str, extractor: str) -> _Copies | None:
    """Nearest training picture of each drawn one, and the shares nearer to real ones than others can be.

    ``memorised``: nearer to a training picture than nearly all held-out pictures are. ``leaked``: as near to a held-out
    picture, which no honest model has seen.
    """
    trained, held_out = kept[TRAIN].rows(name, extractor), kept[HOLDOUT].rows(name, extractor)
    if not len(trained):
        return None
    among, base = kept[TRAIN].sets[name], nearest(held_out, trained)[1]
    at, away = nearest(features, trained)
    hits, share = memorised(away, base)
    _, leaked = memorised(nearest(features, held_out)[1], base)
    return _Copies([among[i] for i in at.tolist()], away, hits, {"memorised": share, "leaked": leaked})


def _of_other(
    drawn: Drawn, judge: Judge, name: str, kept: Mapping[str, Kept], other: str, kind: str
) -> dict[str, Estimate]:
    """Metrics by an extractor of the recipe, called after it; those of Inception have the names they are known by."""
    features, found = drawn.more[f"{other}/features"], {}
    if name != TRAINED:
        distance = frechet_estimate(features, judge.reference[f"{name}.{other}"])
        plain = kind == "inception"
        found[f"frechet.{other}" if not plain else "fid" if other == "inception" else f"fid.{other}"] = distance
        found |= {f"{m}.{other}": e for m, e in _distributions(kept[HOLDOUT].rows(name, other), features).items()}
        if plain:
            score = inception_score(drawn.more[f"{other}/probabilities"])
            found["inception_score" if other == "inception" else f"inception_score.{other}"] = score
    if copies := _copies(features, kept, name, other):
        found |= {f"{m}.{other}": e for m, e in copies.metrics.items()}
    if kind == "clip":
        images, texts = drawn.more[f"{other}/embeddings"], drawn.more[f"{other}/texts"]
        found[f"clip_score.{other}"] = bootstrap_mean(clip_scores(images, texts))
        if (hits := _retrieved(images, texts, judge, name)) is not None:
            found[f"r_precision.{other}"] = bootstrap_mean(hits)
        if name != TRAINED:
            found[f"cmmd.{other}"] = clip_discrepancy(kept[HOLDOUT].rows(name, other, "embeddings"), images[:LIMIT])
    return found


def _diversity(drawn: Drawn, further: Drawn, judge: Judge, name: str) -> Estimate:
    """Mean cosine distance of the pictures of a prompt, over the prompts that were drawn several times."""
    again = judge.protocol["diversity"]["images"] - 1
    count = len(further.pictures) // again
    prompts = [*range(count), *(i for i in range(count) for _ in range(again))]
    return bootstrap_mean(diversity(np.concatenate([drawn.images[:count], further.images]), prompts))


def _concepts(drawn: Drawn, judge: Judge) -> list[dict[str, float]] | None:
    concepts = judge.concepts()
    if concepts is None:
        return None
    reader = judge.protocol["concepts"]["extractor"]
    return concepts.found(drawn.images if reader == OWN else drawn.more[f"{reader}/embeddings"])
