"""The pictures of an assessment for a page: from worst to best, beside the nearest training picture, and in pairs.

Bounded whatever the number of prompts: so many pictures a section, each as a thumbnail.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts.errors import ArtifactError
from components.runtime.stage import Context
from components.runtime.storage import Artifact

SHEET, NEIGHBOURS, VARIED = 240, 24, 6  # at most: pictures, neighbours, and prompts drawn again
PAIRS = {"lost": 20, "gained": 20, "neither": 10, "both": 10, "unjudged": 20}  # at most, of each outcome
_SIDE = 128  # of a thumbnail, in pixels
_SMALL = 64  # up to here a picture is kept as it is, without loss

State = Literal["right", "wrong", "unjudged"]
Row = dict[str, Any]  # of per_prompt.parquet


@dataclass(frozen=True)
class Shown:
    """A picture with what is said of it."""

    picture: str  # data: URL
    set: str
    prompt: str
    seed: int
    state: State
    verdict: str  # in words
    clip_score: float | None
    category: str | None


@dataclass(frozen=True)
class Neighbour:
    """A drawn picture beside the training picture nearest to it; ``trained`` is empty where that was taken down."""

    shown: Shown
    trained: str  # data: URL
    caption: str
    distance: float  # Euclidean, of features
    memorised: bool


@dataclass(frozen=True)
class Pair:
    """What champion and challenger drew for one prompt and seed."""

    champion: Shown
    challenger: Shown

    @property
    def outcome(self) -> str:
        """``lost``, ``gained``, ``both`` or ``neither`` by the challenger; ``unjudged`` where one was not judged."""
        one, two = self.challenger.state, self.champion.state
        if "unjudged" in (one, two):
            return "unjudged"
        if one == two:
            return "both" if one == "right" else "neither"
        return "gained" if one == "right" else "lost"


@dataclass(frozen=True)
class Pairs:
    """Pairs to look at, those that tell most first, and how many there are of each outcome."""

    shown: list[Pair]
    counts: dict[str, int]


class Pictures:
    """The rows of an assessment. Pictures are read when they are shown."""

    def __init__(self, assessment: Artifact) -> None:
        self._path = assessment.path("per_prompt.parquet")
        names = [name for name in pq.read_schema(self._path).names if name != "image"]
        self.rows: list[Row] = pq.read_table(self._path, columns=names).to_pylist()
        for at, row in enumerate(self.rows):
            row["at"] = at

    def sheet(self) -> dict[str, list[Shown]]:
        """By set: from worst to best; where a set has too many, the worst, and an even choice of the rest."""
        by_set: dict[str, list[Row]] = {}
        for row in self.rows:
            by_set.setdefault(row["set"], []).append(row)
        chosen = {name: _some(sorted(rows, key=_quality), SHEET // len(by_set)) for name, rows in by_set.items()}
        shown = iter(self._shown([row for rows in chosen.values() for row in rows]))
        return {name: [next(shown) for _ in rows] for name, rows in chosen.items()}

    def neighbours(self, ctx: Context, judge: Artifact) -> list[Neighbour]:
        """The pictures that lie nearest to a training picture, the nearest first; empty where nobody measured it."""
        near = [row for row in self.rows if row.get("nearest") and row.get("nearest_distance") is not None]
        near = sorted(near, key=lambda row: (not row.get("memorised"), row["nearest_distance"], row["at"]))[:NEIGHBOURS]
        if not near:
            return []
        trained = _training_rows(ctx, judge, {row["nearest"] for row in near})
        found = []
        for row, shown in zip(near, self._shown(near), strict=True):
            picture, caption = trained.get(row["nearest"], ("", "no longer in the dataset"))
            found.append(Neighbour(shown, picture, caption, row["nearest_distance"], bool(row.get("memorised"))))
        return found

    def pairs(self, champion: Pictures) -> Pairs:
        """The same prompts and seeds by champion and challenger; the pairs where the two differ come first."""
        theirs = {_key(row): row for row in champion.rows}
        both = [(row, theirs[_key(row)]) for row in self.rows if _key(row) in theirs]
        outcomes: dict[str, list[tuple[Row, Row]]] = {outcome: [] for outcome in PAIRS}
        for one, two in both:
            outcomes[_outcome(one, two)].append((one, two))
        chosen = [pair for outcome, most in PAIRS.items() for pair in _even(outcomes[outcome], most)]
        mine = self._shown([one for one, _ in chosen])
        others = champion._shown([two for _, two in chosen])
        counts = {outcome: len(rows) for outcome, rows in outcomes.items() if rows}
        return Pairs([Pair(two, one) for one, two in zip(mine, others, strict=True)], counts)

    def _shown(self, rows: Sequence[Row]) -> list[Shown]:
        """``rows`` with their pictures; a row group at a time is in memory."""
        wanted = {row["at"] for row in rows}
        images: dict[int, str] = {}
        start, file = 0, pq.ParquetFile(self._path)
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            if mine := sorted(at for at in wanted if start <= at < stop):
                column = file.read_row_group(group, columns=["image"])["image"]
                images |= {at: thumbnail(column[at - start].as_py()) for at in mine}
            start = stop
        return [_told(row, images[row["at"]]) for row in rows]


def varied(assessment: Artifact) -> list[tuple[str, list[str]]]:
    """A few prompts with the pictures that were drawn for them from other seeds; empty where none were."""
    if "diversity.parquet" not in assessment.manifest.files:
        return []
    found: dict[str, list[str]] = {}
    for row in pq.read_table(assessment.path("diversity.parquet"), columns=["prompt", "image"]).to_pylist():
        if row["prompt"] in found or len(found) < VARIED:
            found.setdefault(row["prompt"], []).append(thumbnail(row["image"]))
    return list(found.items())


def thumbnail(data: bytes) -> str:
    """A picture file as a ``data:`` URL of at most :data:`_SIDE` pixels a side; small ones as they are.

    A picture that cannot be read (none was kept of it) gives an empty text.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError):
        return ""
    buffer = io.BytesIO()
    if max(picture.size) <= _SMALL:
        picture.save(buffer, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    picture.thumbnail((_SIDE, _SIDE))
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _training_rows(ctx: Context, judge: Artifact, ids: set[str]) -> dict[str, tuple[str, str]]:
    """Thumbnail and caption of rows of the judge's dataset, by id; those that were taken down are not there."""
    from PIL import Image

    try:
        dataset = ctx.store.by_digest("dataset", judge.manifest.inputs["dataset"])
    except ArtifactError:  # the store does not hold it any more
        return {}
    found = {}
    columns = ["id", "caption", "pixels", "width", "height"]
    for path in dataset.paths("data/part-"):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            hits = pc.is_in(file.read_row_group(group, ["id"])["id"], pa.array(sorted(ids)))
            if pc.any(hits).as_py():  # pixels are read of no other rows
                for row in file.read_row_group(group, columns).filter(hits).to_pylist():
                    buffer = io.BytesIO()
                    Image.frombytes("RGB", (row["width"], row["height"]), row["pixels"]).save(buffer, "PNG")
                    found[row["id"]] = (thumbnail(buffer.getvalue()), row["caption"])
    return found


def _state(row: Row) -> State:
    """By the grader, or else by R-precision."""
    hit = row["correct"] if row["correct"] is not None else row["retrieved"]
    return "unjudged" if hit is None else "right" if hit else "wrong"


def _outcome(one: Row, two: Row) -> str:
    return Pair(_told(two, ""), _told(one, "")).outcome


def _told(row: Row, picture: str) -> Shown:
    if row["correct"] is not None:
        verdict = "all that was asked for" if row["correct"] else row["reason"] or "not what was asked for"
    elif row["retrieved"] is not None:
        verdict = "its own prompt is the nearest" if row["retrieved"] else "another prompt is nearer than its own"
    else:
        verdict = ""
    if row.get("safe") is False:
        verdict += f"{'; ' if verdict else ''}unsafe: {', '.join(json.loads(row.get('concepts') or '{}')) or 'refused'}"
    score = row["clip_score"]
    return Shown(
        picture, row["set"], row["prompt"], row["seed"], _state(row), verdict, score, row.get("category") or None
    )


def _quality(row: Row) -> tuple[int, float, float, int]:
    """Grows from the worst picture to the best."""
    said = json.loads(row["attributes"]) if row["attributes"] else {}
    share = sum(map(bool, said.values())) / len(said) if said else 0.0
    score = row["clip_score"]
    return ("wrong", "unjudged", "right").index(_state(row)), share, score if score is not None else 0.0, row["at"]


def _key(row: Row) -> tuple[str, str, int]:
    return row["set"], row["prompt"], row["seed"]


def _some(rows: list[Row], most: int) -> list[Row]:
    """Of rows from worst to best: all, or the worst half of ``most`` and an even choice of the rest."""
    if len(rows) <= most:
        return rows
    return rows[: most // 2] + _even(rows[most // 2 :], most - most // 2)


def _even(rows: list[Any], most: int) -> list[Any]:
    """All, or ``most`` at even distances, the last one among them."""
    if len(rows) <= most:
        return rows
    return [rows[(i + 1) * len(rows) // most - 1] for i in range(most)]
