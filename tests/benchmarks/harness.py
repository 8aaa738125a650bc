"""What every benchmark shares: interleaved runs, rows with their targets, one JSON file and its Markdown table.

A row compares ours with a named rival, or with a stated limit, in one call on the same cores. Runs alternate
(ours, rival, ours, rival, ...), so that a slow minute of the machine meets both; the figures are medians and
the interval is the range of the runs' ratios. A target that is not met stays in the table as not met.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "benchmarks"
Better = str  # ">=" : the ratio ours / rival must reach the target; "<=" : it must not pass it


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Args:
        figure: what is measured, in words. unit: of ``ours`` and ``rival``.
        ours: median of our runs. rival_name: who or what limit it is held against. rival: median of its runs,
            None where there is no rival or it could not be run (``note`` says why).
        ratio: ours / rival, None without a rival. target: e.g. ">= 2.0 x", "<= 90 s". holds: None if not decided.
        interval: lowest and highest of the runs' values of what the target speaks of. runs: of each side.
    """

    figure: str
    unit: str
    ours: float
    rival_name: str
    rival: float | None
    ratio: float | None
    target: str
    holds: bool | None
    interval: tuple[float, float] | None
    runs: int
    note: str = ""


def against(
    figure: str,
    unit: str,
    ours: Callable[[], float],
    rival_name: str,
    rival: Callable[[], float],
    target: float,
    better: Better = ">=",
    runs: int = 5,
    note: str = "",
) -> Row:
    """A row from alternating runs; each callable runs once and returns its figure in ``unit``."""
    mine, theirs = [], []
    for run in range(runs):
        mine.append(ours())
        theirs.append(rival())
        print(f"  {figure}: run {run + 1} of {runs}: {mine[-1]:.4g} against {theirs[-1]:.4g} {unit}", flush=True)
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.median(mine) / statistics.median(theirs)
    return Row(
        figure, unit, statistics.median(mine), rival_name, statistics.median(theirs), ratio, f"{better} {target:g} x",
        ratio >= target if better == ">=" else ratio <= target, (min(ratios), max(ratios)), runs, note,
    )  # fmt: skip


def limit(
    figure: str, unit: str, values: Sequence[float], target: float, better: Better = ">=", note: str = "",
    limit_name: str = "stated limit",
) -> Row:  # fmt: skip
    """A row held against a stated limit; ``values`` are the runs' figures."""
    ours = statistics.median(values)
    holds = ours >= target if better == ">=" else ours <= target
    interval = (min(values), max(values)) if len(values) > 1 else None
    return Row(figure, unit, ours, limit_name, target, None, f"{better} {target:g} {unit}", holds, interval, len(values), note)


def write(name: str, title: str, rows: Sequence[Row], packages: Sequence[str]) -> Path:
    """Write ``docs/benchmarks/{name}.json`` and ``.md`` and print the table.

    Args:
        packages: names of the distributions whose versions the file states.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = {
        "name": name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": f"make bench-{name}",
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
    }
    text = json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    table = _markdown(title, about, rows)
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    return RESULTS / f"{name}.json"


def _markdown(title: str, about: dict[str, object], rows: Sequence[Row]) -> str:
    lines = [f"# {title}", "", f"{about['date']}, `{about['command']}`, {about['machine']}.", ""]
    lines += ["| what | ours | rival | figure of the rival | ratio | target | holds |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        holds = {True: "yes", False: "**no**", None: "not run"}[row.holds]
        rival = "–" if row.rival is None else f"{_short(row.rival)} {row.unit}"
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        if row.ratio is not None and row.interval:
            ratio += f" ({row.interval[0]:.2f}–{row.interval[1]:.2f})"
        lines.append(
            f"| {row.figure} | {_short(row.ours)} {row.unit} | {row.rival_name} | {rival} | {ratio} | {row.target} | {holds} |"
        )
    notes = [f"- {row.figure}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _machine() -> str:
    import os

    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    ) if Path("/proc/cpuinfo").exists() else platform.processor()  # fmt: skip
    return f"{len(os.sched_getaffinity(0))} cores of {model}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
