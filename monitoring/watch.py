"""watch: from the logbook and the dataset to a drift report and a decision, as an artifact.

The artifact holds what is the same for the same inputs: ``drift.json`` and ``prompts.parquet``. Evidently's
HTML holds random ids, so it lies beside, in ``{home}/drift/``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts.errors import DataError
from components.contracts.manifest import canonical_json, sha256_text
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome, write_bytes
from monitoring.decide import Decision, ReleaseInfo, decide
from monitoring.drift import CHANCE, MATTERS, METHOD, DriftResult, measure_drift
from monitoring.features import CaptionIndex, pixel_stats
from monitoring.live import Live, answered, live, version_before

RECENT = 1000  # requests: drift is a matter of what is asked now, not of what was asked last year
REFERENCE = 3000  # training captions that prompts are compared with, evenly drawn; the words are those of all
PICTURES = 500  # training pictures that made pictures are compared with
_WINDOWS = 10
_NOTHING: dict[str, Any] = {"columns": {}, "unknown_words": {}}
_REVISION = 2  # of the columns and the method; part of the identity


def watch(
    ctx: Context,
    dataset: Artifact,
    logbook: pa.Table,
    model_version: str,
    can_roll_back: bool = True,
    dropped: str | None = None,
) -> Artifact:
    """The drift artifact of the requests to ``model_version``: at most the latest :data:`RECENT`.

    Args:
        dataset: what that version was trained on.
        logbook: rows of ``LOGBOOK_SCHEMA`` in any order.
        can_roll_back: whether an earlier version is there to return to.
        dropped: why a server gave that version up already; None when none did.

    Raises:
        DataError: the dataset holds fewer than two training captions.
    """
    rows = window(logbook, model_version)
    limits = ctx.recipe.watch
    now, before = _live(logbook, rows, model_version)
    release = ReleaseInfo(model_version, can_roll_back, dropped, now, before)
    config = {
        "watch": limits.identity(),
        "model_version": model_version,
        "can_roll_back": can_roll_back,
        "dropped": dropped,
        "live": now.as_json(),
        "before": before and before.as_json(),
        "requests": rows.num_rows,
        "window": window_digest(rows),
        "revision": _REVISION,
    }

    def build(draft: Draft) -> Outcome:
        failed = sum(status >= 500 for status in rows["status"].to_pylist())
        error_rate = failed / rows.num_rows if rows.num_rows else 0.0
        asked = rows.filter(pc.is_valid(rows["prompt"]))
        drift, index = None, None
        if rows.num_rows >= limits.min_requests and asked.num_rows:
            captions = _captions(dataset)
            index = CaptionIndex(tuple(captions))
            pictures = (_training_pictures(dataset), _made_pictures(asked))
            report = ctx.home / "drift" / f"{draft.identity[:12]}.html"
            prompts = asked["prompt"].to_pylist()
            reference = _evenly(captions, REFERENCE)
            drift = measure_drift(index, reference, prompts, pictures, report, limits.threshold)
        decision = decide(drift, rows.num_rows, error_rate, release, limits)
        found = _summary(drift, decision, error_rate, rows.num_rows, model_version, ctx)
        found |= {"live": now.as_json(), "before": before and before.as_json(), "dropped": dropped}
        found["windows"] = _windows(index, asked) if index else []
        write_bytes(f"{draft.url}/drift.json", json.dumps(found, indent=2, ensure_ascii=False).encode())
        write_bytes(f"{draft.url}/prompts.parquet", _parquet(index, asked))
        return Outcome(
            counts={"requests": rows.num_rows, "failed": failed, "prompts": asked.num_rows},
            evidence={"action": decision.action, "reasons": list(decision.reasons)},
        )

    return run_stage(ctx, "drift", {"dataset": dataset}, config, build, label="watch")


def window(logbook: pa.Table, model_version: str) -> pa.Table:
    """One row a request that ``model_version`` answered or failed, in order of time, the latest :data:`RECENT`.

    A request for several pictures has several rows and counts once. Requests refused for the client's fault
    (status 400 to 499) say nothing about the model, nor do those drawn in a style: their subjects have names that no
    training caption has, and pictures that the model alone does not draw. What was drawn besides and shown to nobody
    is no request.
    """
    told = answered(logbook)
    status = told["status"]
    ours = pc.and_(pc.equal(told["model_version"], model_version), pc.is_null(told["style"]))
    meant = pc.or_(pc.less(status, 400), pc.greater_equal(status, 500))
    rows = told.filter(pc.and_(ours, meant)).sort_by([("time", "ascending"), ("request_id", "ascending")])
    first = {request: i for i, request in reversed(list(enumerate(rows["request_id"].to_pylist())))}
    return rows.take(pa.array(sorted(first.values())[-RECENT:], pa.int64()))


def window_digest(rows: pa.Table) -> str:
    """SHA-256 (hex) of what of the rows decides the outcome."""
    names = ["time", "request_id", "prompt", "status", "image_stats"]
    columns = [[str(value) for value in rows[name].to_pylist()] for name in names]
    return sha256_text(canonical_json(columns))


def read_drift(artifact: Artifact) -> dict[str, Any]:
    """The figures of a drift artifact: the fields of ``DriftResult`` (null or empty when nothing was compared), the
    decision, the limits, and the unknown words over time."""
    found: dict[str, Any] = json.loads(artifact.path("drift.json").read_text())
    return found


def decision_of(artifact: Artifact) -> Decision:
    """The decision of a drift artifact."""
    found = read_drift(artifact)
    return Decision(found["decision"]["action"], tuple(found["decision"]["reasons"]))


def report_path(ctx: Context, artifact: Artifact) -> Path:
    """Where Evidently's HTML of a drift artifact lies; there is none when too little was asked to compare."""
    return ctx.home / "drift" / f"{artifact.manifest.identity[:12]}.html"


def _live(logbook: pa.Table, rows: pa.Table, version: str) -> tuple[Live, Live | None]:
    """Figures of ``version``, whose requests are ``rows``, and of the version that was served before it."""
    now, earlier = live(logbook, rows, version), version_before(logbook, version)
    return now, live(logbook, window(logbook, earlier), earlier, now.judge) if earlier else None


def _summary(
    drift: DriftResult | None, decision: Decision, error_rate: float, requests: int, version: str, ctx: Context
) -> dict[str, Any]:
    limits = ctx.recipe.watch
    return {
        "decision": {"action": decision.action, "reasons": list(decision.reasons)},
        "model_version": version,
        "requests": requests,
        "error_rate": round(error_rate, 6),
        "threshold": limits.threshold,
        "unknown_word_threshold": limits.unknown_word_share,
        "method": {"name": METHOD, "matters": MATTERS, "chance": CHANCE},
        **(drift.as_json() if drift else dict.fromkeys(DriftResult.__dataclass_fields__) | _NOTHING),
    }


def _windows(index: CaptionIndex, asked: pa.Table) -> list[dict[str, Any]]:
    """Equal parts of the prompts in order of time, ten or more prompts each, with the share that holds a new word."""
    parts = max(1, min(_WINDOWS, asked.num_rows // 10))
    edges = np.linspace(0, asked.num_rows, parts + 1).astype(int)
    prompts, times = asked["prompt"].to_pylist(), asked["time"].to_pylist()
    return [
        {
            "from": times[start].isoformat(),
            "to": times[end - 1].isoformat(),
            "prompts": int(end - start),
            "unknown_word_share": round(sum(bool(index.unknown(p)) for p in prompts[start:end]) / (end - start), 6),
        }
        for start, end in zip(edges.tolist(), edges[1:].tolist(), strict=False)
    ]


def _parquet(index: CaptionIndex | None, asked: pa.Table) -> bytes:
    table = asked.select(["time", "request_id", "prompt", "status"])
    prompts = table["prompt"].to_pylist()
    if index:
        unknown = pa.array([index.unknown(prompt) for prompt in prompts], pa.list_(pa.string()))
        table = table.append_column("unknown_words", unknown)
        for name, values in index.describe(prompts).items():
            table = table.append_column(name, pa.array(values))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _sample_files(dataset: Artifact) -> list[Path]:
    files = [path for path in dataset.paths("") if path.suffix == ".parquet"]
    return [path for path in files if {"caption", "split", "pixels"} <= set(pq.read_schema(path).names)]


def _captions(dataset: Artifact) -> list[str]:
    found: list[str] = []
    for path in _sample_files(dataset):
        table = pq.read_table(path, columns=["caption", "split"], partitioning=None)
        found += table.filter(pc.equal(table["split"], "train"))["caption"].to_pylist()
    if len(found) < 2:
        raise DataError(
            f"{dataset.short} holds {len(found)} training captions",
            expected="at least 2 to compare prompts with",
            remedy="run `atelier status` to see what the champion was trained on",
        )
    return found


def _training_pictures(dataset: Artifact) -> npt.NDArray[np.float32]:
    """Statistics of training pictures: the same number from every file, without reading the files whole."""
    files = _sample_files(dataset)
    each = max(1, -(-PICTURES // len(files)))
    stats = []
    for path in files:
        batch = next(pq.ParquetFile(path).iter_batches(each, columns=["pixels", "split"]), None)
        if batch is not None:
            stats += [pixel_stats(row["pixels"]) for row in batch.to_pylist() if row["split"] == "train"]
    return np.array(stats, np.float32).reshape(-1, 6)


def _made_pictures(asked: pa.Table) -> npt.NDArray[np.float32]:
    stats = [row for row in asked["image_stats"].to_pylist() if row and len(row) == 6]
    return np.array(stats, np.float32).reshape(-1, 6)


def _evenly(captions: Sequence[str], number: int) -> list[str]:
    if len(captions) <= number:
        return list(captions)
    return [captions[i] for i in np.linspace(0, len(captions) - 1, number).astype(int)]
