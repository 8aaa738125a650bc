"""The report of a whole loop: one self-contained HTML page, and the same figures as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.evaluation.release import read_record, versions
from components.runtime.stage import Context
from components.runtime.storage import Artifact, write_bytes
from monitoring.live import answered

STAGES = {  # kinds of artifacts by the stage that makes them
    "collect": ("collection",),
    "prepare": ("dataset",),
    "train": ("text_encoder", "autoencoder", "latents", "denoiser", "cnn", "vae", "gan", "model"),
    "assess": ("judge_clip", "judge", "assessment"),
    "release": ("release",),
    "watch": ("drift",),
}
TRAININGS = ("text_encoder", "autoencoder", "denoiser", "cnn", "vae", "gan", "judge_clip")
_ATTRIBUTE = "fidelity."  # what metrics of one attribute begin with; other metrics name their extractor after a dot
PAIRS = {"new": 8, "known": 4}  # prompts shown before and after, by prompt set


@dataclass(frozen=True)
class Round:
    """One turn of the loop: the record at its end and everything that it was made from."""

    record: Artifact
    content: dict[str, Any]  # of the record
    version: int
    artifacts: dict[str, Artifact]  # by kind; the newest collection of the dataset, the model's own assessment
    forced: str = ""  # why it was made champion in spite of its verdict

    @property
    def verdict(self) -> str:
        """``pass`` or ``fail``."""
        return str(self.content["verdict"])


def rounds(ctx: Context, records: Sequence[Artifact]) -> list[Round]:
    """The turns of the loop that ended in ``records``, with their artifacts found by lineage."""
    by_model = {v.tags.get("model_digest"): v for v in versions(ctx)}
    found = []
    for record in records:
        content = read_record(record)
        model = ctx.store.by_digest("model", content["model"])
        parts = {kind: ctx.store.by_digest(kind, digest) for kind, digest in model.manifest.inputs.items()}
        dataset = parts["dataset"]
        newest = sorted((r, d) for r, d in dataset.manifest.inputs.items() if r.startswith("collection"))[-1][1]
        judge = ctx.store.by_digest("judge", content["judge"])
        parts |= {
            "model": model,
            "collection": ctx.store.by_digest("collection", newest),
            "judge": judge,
            "judge_clip": ctx.store.by_digest("judge_clip", judge.manifest.inputs["judge_clip"]),
            "assessment": ctx.store.by_digest("assessment", content["assessment"]),
            "release": record,
        }
        latents = [a for a in ctx.store.list("latents") if a.manifest.inputs.get("dataset") == dataset.digest]
        parts |= {"latents": latents[-1]} if latents else {}
        version = by_model[model.digest]
        found.append(Round(record, content, version.version, parts, version.tags.get("forced", "")))
    return found


def write(
    ctx: Context, records: Sequence[Artifact], drift: Artifact, logbook: pa.Table, failures: int
) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` into the recipe's folder and return the summary.

    Args:
        records: the gate's record of each turn of the loop, oldest first.
        drift: what the watch found between them.
        logbook: every request, in ``LOGBOOK_SCHEMA``.
        failures: requests that the clients of the demo saw fail.
    """
    turns, logbook = rounds(ctx, records), answered(logbook)
    summary = summarize(ctx, turns, drift, logbook, failures)
    write_bytes(str(ctx.home / "summary.json"), (json.dumps(summary, indent=2) + "\n").encode())
    write_bytes(str(ctx.home / "report.html"), _render(ctx, turns, drift, logbook, summary).encode())
    return summary


def summarize(
    ctx: Context, turns: Sequence[Round], drift: Artifact, logbook: pa.Table, failures: int
) -> dict[str, Any]:
    """The figures for machines. ``loop_closed`` is true when nothing stands in ``open``."""
    found = json.loads(drift.path("drift.json").read_text())
    last = turns[-1].content
    fidelity = {
        f"{name}_prompts_{side}": _value(metrics, key)
        for name, key in (("old", "known"), ("new", "new"))
        for side, metrics in (
            ("v1", last["champion_metrics"]),
            ("v2", last["metrics"] if len(turns) > 1 else None),
        )
    }
    unwell = sum(status >= 400 for status in logbook.column("status").to_pylist())
    problems = []
    if len(turns) < 2 or turns[-1].verdict != "pass":
        problems.append("the second model was not released")
    elif not (fidelity["new_prompts_v2"] or 0) > (fidelity["new_prompts_v1"] or 0):
        problems.append("the second model is not better on the new prompts")
    if max(failures, unwell):
        problems.append(f"{max(failures, unwell)} requests failed")
    seconds = _seconds(ctx, turns, drift)
    return {
        "loop_closed": not problems,
        "open": problems,
        "seconds": {k: round(v, 1) for k, v in seconds.items()} | {"total": round(sum(seconds.values()), 1)},
        "collected": _totals([t.artifacts["collection"] for t in turns]),
        "dataset": {**turns[-1].artifacts["dataset"].manifest.counts,
                    "dropped": turns[-1].artifacts["dataset"].manifest.dropped},
        "releases": [
            {"version": t.version, "verdict": t.verdict} | {k: t.content[k] for k in ("metrics", "reasons")}
            for t in turns
        ],
        "drift": {"score": found["score"], "verdict": found["decision"]["action"]},
        "fidelity": fidelity,
        "served": {"requests": logbook.num_rows, "failures": max(failures, unwell)},
    }  # fmt: skip


def _value(metrics: dict[str, Any] | None, name: str) -> float | None:
    estimate = (metrics or {}).get(name, {}).get("fidelity")
    return None if estimate is None else round(estimate["value"], 4)


def _totals(collections: Sequence[Artifact]) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    dropped: dict[str, int] = {}
    for collection in collections:
        for into, more in ((counts, collection.manifest.counts), (dropped, collection.manifest.dropped)):
            for key, n in more.items():
                into[key] = into.get(key, 0) + n
    return {**counts, "dropped": dropped}


def _seconds(ctx: Context, turns: Sequence[Round], drift: Artifact) -> dict[str, float]:
    """Wall time by stage. An artifact remembers its own, so an interrupted demo still adds up."""
    artifacts = [a for t in turns for a in t.artifacts.values()] + [drift]
    last = turns[-1].content["champion"]
    if last:
        artifacts.append(ctx.store.by_digest("assessment", last["assessment"]))
    spent = {
        stage: sum(a.manifest.circumstance.get("seconds", 0.0) for a in {a.digest: a for a in artifacts}.values()
                   if a.manifest.kind in kinds)
        for stage, kinds in STAGES.items()
    }  # fmt: skip
    kinds = {kind for group in STAGES.values() for kind in group} | {"assess"}
    return spent | {label: s for label, s in ctx.seconds.items() if label not in kinds}


def _render(ctx: Context, turns: Sequence[Round], drift: Artifact, logbook: pa.Table, summary: dict[str, Any]) -> str:
    import jinja2

    from monitoring import figures
    from monitoring.drift_plot import drift_figure

    found = json.loads(drift.path("drift.json").read_text())
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8"))
    words = ", ".join(f"“{word}”" for word in list(found["unknown_words"])[:8])
    minutes = summary["seconds"]["total"] / 60
    return template.render(
        name=ctx.recipe.name,
        headline="The loop closed" if summary["loop_closed"] else "The loop did not close",
        subline=(
            "Collected, trained, judged, released, served, seen drifting, trained again and replaced "
            f"in {minutes:.1f} minutes."
            if summary["loop_closed"] else "; ".join(summary["open"])
        ),
        tiles=_tiles(summary),
        versions=[t.version for t in turns],
        pairs=_pairs(ctx, turns[-1]),
        funnels=[_funnel(ctx, turn) for turn in turns],
        curves=figures.curves({f"round {i + 1}": _curves(t) for i, t in enumerate(turns)}),
        trainings=[row for i, turn in enumerate(turns) for row in _trainings(turn, i + 1)],
        releases=[_release(turn) for turn in turns],
        drift={
            "sentence": f"{found['unknown_word_share']:.0%} of the prompts held a word that no training caption has"
            + (f": {words}." if words else "."),
            "figure": drift_figure(found),
            "action": found["decision"]["action"],
            "reasons": "; ".join(found["decision"]["reasons"]),
            "report": _link(ctx, f"drift/{drift.manifest.identity[:12]}.html"),
        },
        served={
            "sentence": f"{summary['served']['requests']} requests, {summary['served']['failures']} failed. "
            "The version changed while requests kept coming.",
            "figure": figures.served(logbook),
        },
        timings=_bars({k: v for k, v in summary["seconds"].items() if k != "total"}),
        links=_links(ctx),
    )  # fmt: skip


def _tiles(summary: dict[str, Any]) -> list[dict[str, str]]:
    fidelity, served = summary["fidelity"], summary["served"]

    def share(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.1%}"

    return [
        {"value": f"{share(fidelity['new_prompts_v1'])} → {share(fidelity['new_prompts_v2'])}",
         "label": "of new prompts drawn right, before → after"},
        {"value": f"{share(fidelity['old_prompts_v1'])} → {share(fidelity['old_prompts_v2'])}",
         "label": "of old prompts drawn right, before → after"},
        {"value": str(summary["collected"].get("urls", "?")), "label": "URLs asked for"},
        {"value": f"{served['failures']} of {served['requests']}", "label": "requests failed"},
        {"value": f"{summary['seconds']['total'] / 60:.1f} min", "label": "from nothing to here"},
    ]  # fmt: skip


def _pairs(ctx: Context, last: Round) -> list[dict[str, Any]]:
    champion = last.content["champion"]
    if not champion:
        return []
    columns = ["set", "prompt", "seed", "correct", "reason", "image"]
    before = ctx.store.by_digest("assessment", champion["assessment"]).path("per_prompt.parquet")
    after = last.artifacts["assessment"].path("per_prompt.parquet")
    rows = {
        side: {(r["set"], r["prompt"], r["seed"]): r for r in pq.read_table(path, columns=columns).to_pylist()}
        for side, path in (("before", before), ("after", after))
    }
    titles = {"new": "Concepts that the first model had never seen", "known": "Concepts that it knew"}
    groups = []
    for name, title in titles.items():
        keys = [key for key in rows["before"] if key[0] == name and key in rows["after"]]
        step = max(1, len(keys) // PAIRS[name])  # spread over the set, whatever came out
        groups.append({"title": title, "rows": [
            {"prompt": key[1], "sides": [_side(rows[side][key], side) for side in ("before", "after")]}
            for key in keys[::step][: PAIRS[name]]
        ]})  # fmt: skip
    return groups


def _side(row: dict[str, Any], side: str) -> dict[str, str]:
    mark = {True: "yes", False: "no", None: ""}[row["correct"]]
    label = (row["reason"] or {"yes": "all right", "": "not graded"}.get(mark, "")).partition(": saw")[0]
    return {
        "mark": mark,
        "src": _image(row["image"]),
        "label": f"{side}: {label}",
        "alt": f"{side}, {row['prompt']}",
    }


def _funnel(ctx: Context, turn: Round) -> dict[str, Any]:
    collection, dataset = turn.artifacts["collection"].manifest, turn.artifacts["dataset"].manifest
    several = sum(role.startswith("collection") for role in dataset.inputs) > 1
    bars: list[tuple[str, int, bool]] = [("URLs", collection.counts["urls"], False)]
    bars += [(reason, n, True) for reason, n in sorted(collection.dropped.items(), key=lambda kv: -kv[1])]
    bars += [("fetched", collection.counts["success"], False)]
    bars += [(reason, n, True) for reason, n in sorted(dataset.dropped.items(), key=lambda kv: -kv[1])]
    bars += [(f"{name} rows", dataset.counts[name], False) for name in ("train", "holdout") if name in dataset.counts]
    largest = max(n for _, n, _ in bars)
    title = f"For version {turn.version}" + (": the new pages, then old and new together" if several else "")
    return {
        "title": title,
        "docs": _link(ctx, f"data_docs/{dataset.identity[:12]}/index.html"),
        "bars": [
            {"label": label.replace("_", " "), "count": n, "lost": lost, "percent": 100 * n / largest}
            for label, n, lost in bars
        ],
    }


def _curves(turn: Round) -> dict[str, list[dict[str, float]]]:
    return {
        name: json.loads(turn.artifacts[name].path("curve.json").read_text())
        for name in TRAININGS
        if name in turn.artifacts and "curve.json" in turn.artifacts[name].manifest.files  # else it was loaded
    }


def _trainings(turn: Round, number: int) -> list[dict[str, Any]]:
    rows = []
    for name, curve in _curves(turn).items():
        seconds = turn.artifacts[name].manifest.circumstance.get("seconds", 0.0)
        images = int(curve[-1]["images"])
        rows.append({
            "name": f"round {number}: {name.replace('_', ' ')}", "images": images, "seconds": f"{seconds:.0f}",
            "rate": f"{images / seconds:.0f}" if seconds else "",
            "loss": f"{curve[0]['loss']:.3f} → {curve[-1]['loss']:.3f}",
        })  # fmt: skip
    return rows


def _release(turn: Round) -> dict[str, Any]:
    def row(name: str, metric: str, e: dict[str, Any]) -> dict[str, Any]:
        interval = f"{e['low']:.3f} – {e['high']:.3f}" if e.get("low") is not None else ""
        return {
            "set": name,
            "metric": metric.replace("_", " "),
            "value": f"{e['value']:.3f}",
            "interval": interval,
            "n": e["n"],
        }

    return {
        "version": turn.version,
        "verdict": turn.verdict,
        "forced": turn.forced,
        "reasons": turn.content["reasons"],
        "metrics": [
            row(n, m, e)
            for n, metrics in turn.content["metrics"].items()
            for m, e in metrics.items()
            if not m.startswith(_ATTRIBUTE)
        ],
        "attributes": [
            f"{n}: "
            + ", ".join(
                f"{m.partition('.')[2]} {e['value']:.1%}" for m, e in metrics.items() if m.startswith(_ATTRIBUTE)
            )
            for n, metrics in turn.content["metrics"].items()
            if any(m.startswith(_ATTRIBUTE) for m in metrics)
        ],
        "protocol": ", ".join(f"{k} {str(v)[:16]}" for k, v in turn.content["stamp"].items()),
        "sheet": _image(turn.artifacts["assessment"].path("sheet.png").read_bytes()),
    }


def _bars(values: dict[str, float]) -> list[dict[str, Any]]:
    largest = max([*values.values(), 1e-9])
    return [{"label": k, "count": f"{v:.0f}", "percent": 100 * v / largest, "lost": False} for k, v in values.items()]


def _links(ctx: Context) -> list[str]:
    import html

    links = [
        f"MLflow: <code>mlflow ui --backend-store-uri {html.escape(ctx.registry_uri)}</code>",
        "The same figures for machines: <a href='summary.json'>summary.json</a>",
    ]
    return [*links, "The artifacts: <a href='store/'>store/</a>"] if (ctx.home / "store").is_dir() else links


def _link(ctx: Context, path: str) -> str | None:
    return path if (ctx.home / path).exists() else None


def _image(data: bytes) -> str:
    kind = "png" if io.BytesIO(data).read(4) == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
