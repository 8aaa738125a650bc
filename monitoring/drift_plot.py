"""The drift of one window as a figure: columns against their limits, and new words over time."""

from __future__ import annotations

import io
import re
from typing import Any

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_CALM, _HOT, _PALE = "#5b8def", "#d9480f", "#c3d3f7"


def drift_figure(drift: dict[str, Any]) -> str:
    """Inline SVG of the figures of a drift artifact (``watch.read_drift``); equal input gives equal text.

    Left, the distance of every column as a share of its limit; right, the share of prompts with a word that no
    training caption has, over time.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "svg.hashsalt": "atelier",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
    }
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(10.5, 3.9), layout="constrained")
        FigureCanvasSVG(figure)
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(_GRID)
            axes.tick_params(colors=_INK, length=0)
            axes.set_axisbelow(True)
        if drift["columns"]:
            _draw_columns(left, drift)
            _draw_time(right, drift)
        else:
            for axes in (left, right):
                axes.set_axis_off()
            left.text(0, 0.5, drift["decision"]["reasons"][0], color=_MUTED)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    flexible = 'width="100%" role="img" aria-label="drift"'
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', flexible, svg, count=1)


def _draw_columns(axes: Any, drift: dict[str, Any]) -> None:
    order = sorted(drift["columns"].items(), key=lambda item: (item[1]["scored"], item[1]["distance"]))
    names = [name.replace("_", " ") for name, _ in order]
    ratios = [column["distance"] / column["limit"] for _, column in order]
    colours = [(_HOT if c["drifted"] else _CALM) if c["scored"] else _PALE for _, c in order]
    axes.barh(names, ratios, color=colours, height=0.62)
    axes.axvline(1.0, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    edge = max(1.25, max(ratios) * 1.12)
    axes.set_xlim(0, edge)
    for position, (ratio, (_, column)) in enumerate(zip(ratios, order, strict=True)):
        value = f"{column['distance']:.2f}"
        axes.text(ratio + edge * 0.012, position, value, va="center", color=_INK, fontsize=8.5)
    axes.grid(axis="x", color=_GRID)
    axes.set_xlabel("distance from the training captions, as a share of the limit (dashed)", color=_MUTED)
    share, allowed = drift["share_drifted"], drift["threshold"]
    title = f"{share:.0%} of the scored columns drifted (retrain at {allowed:.0%})"
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    paint = {"what is asked, drifted": _HOT, "what is asked": _CALM, "how it is asked, pictures: not scored": _PALE}
    for label, colour in paint.items():
        axes.barh([names[0]], [0], color=colour, label=label)
    axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=_INK)


def _draw_time(axes: Any, drift: dict[str, Any]) -> None:
    windows = drift["windows"]
    ends, seen = [], 0
    for part in windows:
        seen += part["prompts"]
        ends.append(seen)
    starts = [0, *ends[:-1]]
    shares = [part["unknown_word_share"] * 100 for part in windows]
    limit = min(100.0, (drift["usual_unknown_word_share"] + drift["unknown_word_threshold"]) * 100)
    colours = [_HOT if share >= limit else _CALM for share in shares]
    widths = [(end - start) * 0.9 for start, end in zip(starts, ends, strict=True)]
    axes.bar([(a + b) / 2 for a, b in zip(starts, ends, strict=True)], shares, width=widths, color=colours)
    axes.axhline(limit, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 105)
    axes.set_xlim(0, seen)
    axes.grid(axis="y", color=_GRID)
    axes.set_xlabel(f"prompts to version {drift['model_version']}, in order of time", color=_MUTED)
    axes.set_ylabel("prompts with a new word, %", color=_MUTED)
    words = ", ".join(list(drift["unknown_words"])[:4])
    title = f"New words: {words}" if words else "No word that training has not seen"
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
