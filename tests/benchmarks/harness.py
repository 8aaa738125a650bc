"""What every benchmark shares: interleaved runs, rows with their targets, one JSON file and its Markdown table.

A row compares ours with a named rival, or with a stated limit, in one call on the same cores. Runs alternate
(ours, rival, ours, rival, ...), so that a slow minute of the machine meets both; the figures are medians and
the interval is the range of the runs' ratios. A target that is not met stays in the table as not met.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
        date: of the measurement, where it is not that of the file.
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
    date: str = ""


def not_run(figure: str, unit: str, target: str, why: str, rival_name: str = "stated limit") -> Row:
    """A row that could not be measured here, with the reason."""
    return Row(figure, unit, float("nan"), rival_name, None, None, target, None, None, 0, why)


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
    return paired(figure, unit, mine, rival_name, theirs, target, better, note)


def paired(
    figure: str,
    unit: str,
    mine: Sequence[float],
    rival_name: str,
    theirs: Sequence[float],
    target: float,
    better: Better = ">=",
    note: str = "",
) -> Row:
    """A row from runs that alternated: the ``i``-th figures of both sides were taken one after the other."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    ratio = statistics.median(mine) / statistics.median(theirs)
    return Row(
        figure, unit, statistics.median(mine), rival_name, statistics.median(theirs), ratio, f"{better} {target:g} x",
        ratio >= target if better == ">=" else ratio <= target, (min(ratios), max(ratios)), len(ratios), note,
    )  # fmt: skip


def limit(
    figure: str, unit: str, values: Sequence[float], target: float, better: Better = ">=", note: str = "",
    limit_name: str = "stated limit",
) -> Row:  # fmt: skip
    """A row held against a stated limit; ``values`` are the runs' figures."""
    ours = statistics.median(values)
    holds = ours >= target if better == ">=" else ours <= target
    interval = (min(values), max(values)) if len(values) > 1 else None
    said = f"{better} {target:g} {unit}"
    return Row(figure, unit, ours, limit_name, target, None, said, holds, interval, len(values), note)


def write(name: str, title: str, rows: Sequence[Row], packages: Sequence[str]) -> Path:
    """Write ``docs/benchmarks/{name}.json`` and ``.md`` and print the table.

    Args:
        packages: names of the distributions whose versions the file states.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "name": name,
        "date": today(),
        "command": f"make bench-{name}",
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in packages},
    }
    text = json.dumps(about | {"rows": [_plain(row) for row in rows]}, indent=2, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    head = f"# {title}\n\n{about['date']}, `{about['command']}`, {about['machine']}.\n{versions}.\n\n"
    (RESULTS / f"{name}.md").write_text(head + table(rows), encoding="utf-8")
    sys.stdout.write(head + table(rows))
    return RESULTS / f"{name}.json"


def update(name: str, title: str, rows: Sequence[Row], packages: Sequence[str], order: Sequence[str]) -> Path:
    """:func:`write`, but rows of earlier calls that were not measured now stay, each with the date of its own.

    A row takes the place of the earlier one of the same figure, but one that was not run does not take the place of
    one that was.

    Args:
        order: beginnings of figures, in the order of the table; rows that begin with none of them are left out.
    """
    known = {row.figure: row for row in earlier(name)}
    for row in rows:
        if row.holds is not None or row.figure not in known or known[row.figure].holds is None:
            known[row.figure] = replace(row, date=today())
    place = {row: next((i for i, start in enumerate(order) if row.startswith(start)), None) for row in known}
    kept = sorted((figure for figure in known if place[figure] is not None), key=lambda figure: place[figure] or 0)
    return write(name, title, [known[figure] for figure in kept], packages)


def earlier(name: str) -> list[Row]:
    """The rows of ``docs/benchmarks/{name}.json`` as they are there, none where there is no such file."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for row in found["rows"]:
        row["ours"] = float("nan") if row["ours"] is None else row["ours"]
        row["interval"] = row["interval"] and tuple(row["interval"])
        rows.append(Row(**{"date": found["date"], **row}))
    return rows


def today() -> str:
    """The date, UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def _plain(row: Row) -> dict[str, Any]:
    """JSON values of a row: what was not measured is null, and a date is given where there is one."""
    values = asdict(row)
    values["ours"] = None if math.isnan(row.ours) else row.ours
    if not row.date:
        del values["date"]
    return values


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, notes below it. In brackets: lowest and highest of the runs."""
    lines = ["| what | ours | rival | figure of the rival | ratio | target | holds |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        holds = "–" if row.target == "no target" else {True: "yes", False: "**no**", None: "not run"}[row.holds]
        span = f" ({_short(row.interval[0])}–{_short(row.interval[1])})" if row.interval else ""
        measured = f"{_short(row.ours)} {row.unit}{span if row.ratio is None else ''}"
        ours = "–" if math.isnan(row.ours) else measured
        rival = "–" if row.rival is None else f"{_short(row.rival)} {row.unit}"
        ratio = "–" if row.ratio is None else f"{_short(row.ratio)}{span}"
        lines.append(f"| {row.figure} | {ours} | {row.rival_name} | {rival} | {ratio} | {row.target} | {holds} |")
    other = {row.date for row in rows if row.date} - {max((row.date for row in rows), default="")}
    notes = [f"- {row.figure}: {_dated(row, bool(other))}" for row in rows if row.note]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def _dated(row: Row, dated: bool) -> str:
    """The note of a row, with the date of the measurement where the table's rows are of several."""
    return f"{row.note} (measured {row.date})" if dated and row.date and row.holds is not None else row.note


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {models[0] if models else platform.processor()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
