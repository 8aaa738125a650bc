"""Plots of the report, as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#3557a8", "#d08a2e", "#1d7a4c", "#a8436b")


def curves(rounds: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """Loss over images seen: one panel a training, one line a round.

    Args:
        rounds: by round, by training, the points with ``images`` and ``loss``.
    """
    names = list(dict.fromkeys(name for trainings in rounds.values() for name in trainings))
    figure = new_figure(10.4, 2.6)
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        for colour, (label, trainings) in zip(COLOURS, rounds.items(), strict=False):
            points = trainings.get(name, ())
            axes.plot(
                [p["images"] / 1000 for p in points],
                [p["loss"] for p in points],
                color=colour,
                label=label,
                lw=1.4,
            )
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.set_xlabel("thousand images seen", fontsize=8)
        axes.set_yscale("log")
        _plain(axes)
        if place == 0:
            axes.set_ylabel("loss", fontsize=8)
            axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def served(logbook: pa.Table) -> str:
    """Seconds of every request over time, coloured by the version that answered; failures as crosses."""
    rows = sorted(logbook.select(["time", "seconds", "model_version", "status"]).to_pylist(), key=lambda r: r["time"])
    figure = new_figure(10.4, 2.8)
    axes = figure.add_subplot()
    if rows:
        start = rows[0]["time"]
        versions = list(dict.fromkeys(r["model_version"] for r in rows if r["status"] < 400))
        for colour, version in zip(COLOURS, versions, strict=False):
            points = [
                (r["time"] - start, r["seconds"]) for r in rows if r["model_version"] == version and r["status"] < 400
            ]
            axes.scatter(
                [t.total_seconds() / 60 for t, _ in points], [s for _, s in points],
                s=9, color=colour, alpha=0.7, lw=0, label=f"version {version}",
            )  # fmt: skip
        lost = [(r["time"] - start, r["seconds"]) for r in rows if r["status"] >= 400]
        if lost:
            axes.scatter(
                [t.total_seconds() / 60 for t, _ in lost],
                [s for _, s in lost],
                marker="x",
                color="#b3362b",
                label="failed",
            )
        axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper left")
        axes.set_ylim(0, max(r["seconds"] for r in rows) * 1.25)
    axes.set_xlabel("minutes since the first request", fontsize=8)
    axes.set_ylabel("seconds a request", fontsize=8)
    _plain(axes)
    return svg(figure)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element, the same bytes for the same figure."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "atelier"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(True, alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
