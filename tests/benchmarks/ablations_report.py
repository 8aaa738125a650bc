"""The ablations' report: a JSON file, a table and a picture in ``docs/benchmarks/ablations/``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.evaluation.intervals import Estimate, wilson
from tests.benchmarks.ablations import VARIANTS
from tests.benchmarks.harness import RESULTS, today

FOLDER = RESULTS / "ablations"
_AVERAGED = "validation_loss_average"  # of the curve: the held-out loss of the averaged weights


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each variant: fidelity over the prompts of all its seeds, and of each seed."""
    found = []
    for name, variant in VARIANTS.items():
        mine = [run for run in runs if run["variant"] == name]
        if not mine:
            continue
        counts = [(round(r["metrics"]["fidelity"]["value"] * r["metrics"]["fidelity"]["n"]), r) for r in mine]
        total: Estimate = wilson(sum(c for c, _ in counts), sum(r["metrics"]["fidelity"]["n"] for r in mine))
        losses = [loss for run in mine if (loss := last(run["curve"])) is not None]
        found.append(
            {
                "variant": name, "group": variant.group, "label": variant.label, "guidance": variant.guidance,
                "seeds": [run["seed"] for run in mine], "images": mine[0]["images"],
                "parameters": mine[0]["parameters"], "fidelity": total.as_json(),
                "fidelity_by_seed": [run["metrics"]["fidelity"]["value"] for run in mine],
                "frechet_by_seed": [run["metrics"]["frechet"]["value"] for run in mine],
                "validation_loss_by_seed": losses or None, "stamps": [r["metrics"]["fidelity"]["stamp"] for r in mine],
            }
        )  # fmt: skip
    return found


def last(curve: Sequence[dict[str, Any]]) -> float | None:
    """The newest held-out loss of a curve, None where none was taken."""
    taken = [
        point[_AVERAGED] if _AVERAGED in point else point["validation_loss"] for point in curve if _is_held_out(point)
    ]
    return float(taken[-1]) if taken else None


def _is_held_out(point: dict[str, Any]) -> bool:
    return _AVERAGED in point or "validation_loss" in point


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, the base first, then group by group."""
    lines = [
        "| compared | variant | fidelity (95 %) | of each seed | Fréchet distance | held-out loss | parameters |",
        "|---|---|---|---|---|---|---:|",
    ]
    for row in rows:
        f = row["fidelity"]
        seeds = ", ".join(f"{value:.3f}" for value in row["fidelity_by_seed"])
        distances = ", ".join(f"{value:.3g}" for value in row["frechet_by_seed"])
        losses = ", ".join(f"{value:.4f}" for value in row["validation_loss_by_seed"] or []) or "–"
        lines.append(
            f"| {row['group']} | {row['label']} | {f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f}, N {f['n']}) | "
            f"{seeds} | {distances} | {losses} | {row['parameters'] / 1e6:.2f} M |"
        )
    return "\n".join(lines) + "\n"


def write_report(runs: Sequence[dict[str, Any]], folder: Path = FOLDER) -> None:
    """Write the three files; nothing where there are no runs."""
    rows = summary(runs)
    if not rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stamp = runs[0]["stamp"]
    about = {"name": "ablations", "date": today(), "command": "make bench-ablations", "rows": rows, "stamp": stamp,
             "curves": [{"variant": r["variant"], "seed": r["seed"], "curve": r["curve"]} for r in runs]}  # fmt: skip
    (folder / "ablations.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = (
        f"# Ablations\n\n{about['date']}, `{about['command']}`. Every run sees {rows[0]['images']:,} images of single "
        "objects of the embedded world at 32 pixels (2,700 pictures), starts from the text encoder and the "
        "autoencoder of its seed, and is judged on the same held-out prompts by the exact grader; "
        f"{stamp['steps']} steps, guidance 2 where the row does not say otherwise. One thing is changed at a time. "
        "Intervals are Wilson's over the prompts of all seeds; the spread of training itself is what lies between "
        "the seeds. Losses of different objectives do not compare.\n\nIn the picture, lines are the training loss, "
        "one a seed; dots are the held-out loss of the averaged weights at fixed times and noise.\n\n"
    )
    (folder / "ablations.md").write_text(text + table(rows) + "\n![curves](curves.png)\n", encoding="utf-8")
    draw(runs, rows, folder / "curves.png")


def draw(runs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Left: fidelity of every variant with its interval. Right, for each group: losses over the images seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [group for group in dict.fromkeys(row["group"] for row in rows) if group != "base"] or ["base"]
    height = -(-len(groups) // 2)
    figure = pyplot.figure(figsize=(14, max(0.42 * len(rows) + 1.5, 2.3 * height)), layout="constrained")
    grid = figure.add_gridspec(height, 3, width_ratios=(1.25, 1, 1))
    colours = {row["variant"]: "0.35" if row["group"] == "base" else "" for row in rows}
    for group in groups:
        fresh = [row["variant"] for row in rows if row["group"] == group and not colours[row["variant"]]]
        colours |= {variant: f"C{i}" for i, variant in enumerate(fresh)}
    _fidelities(figure.add_subplot(grid[:, 0]), rows, colours)
    for place, group in enumerate(groups):
        axes = figure.add_subplot(grid[place // 2, 1 + place % 2])
        _losses(axes, [run for run in runs if VARIANTS[run["variant"]].group in ("base", group)], colours)
        axes.set_title(group, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _fidelities(axes: Any, rows: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    for place, row in enumerate(rows):
        f, colour = row["fidelity"], colours[row["variant"]]
        axes.plot([f["low"], f["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(f["value"], place, "o", color=colour)
        axes.plot(row["fidelity_by_seed"], [place] * len(row["seeds"]), "|", color="black", markersize=9)
    if rows[0]["variant"] == "base":
        axes.axvline(rows[0]["fidelity"]["value"], color="0.85", zorder=0)
    axes.set_yticks(range(len(rows)), [row["label"].split(":")[0] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("prompt fidelity: all seeds and 95 % interval (dot), each seed (stroke)", fontsize=8)


def _losses(axes: Any, runs: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    """Lines: the training loss. Dots: the held-out loss of the averaged weights, where it was taken."""
    named = set[str]()
    for run in runs:
        colour, points = colours[run["variant"]], [point for point in run["curve"] if "loss" in point][2:]
        label = None if run["variant"] in named else VARIANTS[run["variant"]].label.split(":")[0]
        named.add(run["variant"])
        images = [point["images"] for point in points]
        axes.plot(
            images, _smooth([p.get("denoising", p["loss"]) for p in points]), linewidth=0.9, color=colour, label=label
        )
        taken = [(p["images"], p.get(_AVERAGED, p.get("validation_loss"))) for p in run["curve"] if _is_held_out(p)]
        axes.plot([x for x, _ in taken], [y for _, y in taken], ".", color=colour, markersize=5)
    axes.set_yscale("log")
    axes.tick_params(labelsize=7, which="both")
    axes.legend(fontsize=7)
    axes.set_xlabel("images seen", fontsize=7)
    axes.set_ylabel("loss", fontsize=7)


def _smooth(values: Sequence[float], reach: int = 4) -> list[float]:
    return [
        sum(values[max(0, i - reach) : i + reach + 1]) / len(values[max(0, i - reach) : i + reach + 1])
        for i in range(len(values))
    ]
