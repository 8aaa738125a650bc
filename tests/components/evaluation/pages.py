"""Assessments with pictures, for tests of what is shown of them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.data.world import WorldSpec, phrasings, render, sample_scene
from components.evaluation.intervals import bootstrap_mean, wilson
from components.runtime.stage import Context
from components.runtime.storage import Artifact

COLUMNS = pa.schema(
    [
        ("set", pa.string()), ("index", pa.int32()), ("prompt", pa.string()), ("category", pa.string()),
        ("seed", pa.int64()), ("correct", pa.bool_()), ("attributes", pa.string()), ("reason", pa.string()),
        ("retrieved", pa.bool_()), ("clip_score", pa.float32()), ("nearest", pa.string()),
        ("nearest_distance", pa.float32()), ("memorised", pa.bool_()), ("safe", pa.bool_()),
        ("concepts", pa.string()), ("image", pa.binary()),
    ]
)  # fmt: skip


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows_of(
    name: str, right: Sequence[bool | None], seed: int, near: Sequence[str], side: int = 32
) -> list[dict[str, Any]]:
    """One row a verdict; the picture of a wrong one is of another scene."""
    rng = np.random.default_rng(7)
    rows = []
    for i, correct in enumerate(right):
        scene, other = sample_scene(rng, WorldSpec()), sample_scene(rng, WorldSpec())
        rows.append(
            {
                "set": name, "index": i, "prompt": phrasings(scene)[0] if i else "<script>alert(1)</script> & a dog",
                "category": scene.kind, "seed": 70_000 + seed + i, "correct": correct,
                "attributes": None if correct is None else json.dumps({"shape": correct, "colour": i % 3 > 0}),
                "reason": None if correct is None else "" if correct else "colour wrong: asked red, found blue",
                "retrieved": i % 4 > 0, "clip_score": 20 + 10 * bool(correct) + i / 100,
                "nearest": near[i % len(near)] if near else None,
                "nearest_distance": 1 + ((i * 7) % 11) / 10 if near else None, "memorised": i == 3 if near else None,
                "safe": i != 5, "concepts": json.dumps({"gore": 0.1}) if i == 5 else "{}",
                "image": png(np.asarray(render(scene if correct else other, side, i))),
            }
        )  # fmt: skip
    return rows


def make_assessment(
    ctx: Context,
    make: Callable[..., Artifact],
    dataset: Artifact,
    name: str,
    right: Sequence[bool | None],
    near: Sequence[str] = (),
    other: Sequence[bool | None] = (),
    side: int = 32,
) -> Artifact:
    """The assessment of a model called ``name`` by the judge of ``dataset``: sets ``known`` and perhaps ``parti``."""
    model = make(ctx, "model", {"unet/diffusion.safetensors": name.encode(), "model_index.json": b"{}"})
    judge = make(ctx, "judge", {"protocol.json": b"{}"}, {"dataset": dataset})
    rows = rows_of("known", right, 0, near, side) + (rows_of("parti", other, 1000, (), side) if other else [])
    metrics: dict[str, Any] = {}
    for found in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == found]
        judged = [row["correct"] for row in mine if row["correct"] is not None]
        metrics[found] = {
            "r_precision": bootstrap_mean([float(row["retrieved"]) for row in mine]).as_json(),
            "clip_score": bootstrap_mean([row["clip_score"] for row in mine]).as_json(),
            "frechet": {"value": 8.4, "low": 7.1, "high": 9.9, "n": len(mine)},
        }
        if judged:
            metrics[found]["fidelity"] = wilson(sum(judged), len(judged)).as_json()
            metrics[found]["fidelity.colour"] = wilson(len(judged) * 2 // 3, len(judged)).as_json()
            metrics[found]["fidelity.shape"] = wilson(sum(judged), len(judged)).as_json()
    stamp = {"judge": judge.digest, "steps": 16, "n": {"known": len(right)}}
    share = wilson(3, 7).as_json()
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), data, row_group_size=64)
    files = {
        "metrics.json": json.dumps(metrics | {"stamp": stamp}, sort_keys=True).encode(),
        "categories.json": json.dumps({"known": {"single": {"fidelity": share}, "pair": {"fidelity": share}}}).encode(),
        "per_prompt.parquet": data.getvalue(),
        "sheet.png": png(np.zeros((8, 8, 3), np.uint8)),
        "circumstance/latency.json": json.dumps(
            {
                "alone": {"seconds_an_image": 0.31, "low": 0.3, "high": 0.33, "n": 8, "batch": 1},
                "batched": {"seconds_an_image": 0.07, "low": 0.06, "high": 0.08, "n": 4, "batch": 16},
                "hardware": "2 cores", "device": "cpu", "dtype": "fp32", "threads": 1,
            }
        ).encode(),
    }  # fmt: skip
    return make(ctx, "assessment", files, {"model": model, "judge": judge})
