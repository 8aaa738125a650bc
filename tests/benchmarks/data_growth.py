"""Growth of every metadata step of prepare from 100 000 to 1 000 000 rows: ``rows()``.

Scores are made up, with copies among them, and no picture is opened. Times are of the processor, which another
process's work does not lengthen. Both sizes do the same amount of work: each step is done once on a million rows, or
on ten tables of a hundred thousand rows, one after the other, and what it gives is kept. Otherwise the million alone
would need memory that the system has not at hand: to supply a page for the first time can take it, in a virtual
machine, a hundred times as long as the next time. Each measurement is a fresh process:

    python -m tests.benchmarks.data_growth make ROWS FOLDER
    python -m tests.benchmarks.data_growth measure ROWS FOLDER TABLES
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.harness import Row, limit

T = TypeVar("T")
SMALL, LARGE = 100_000, 1_000_000
RUNS = 3
TARGET = 1.15
_PART = 10_000  # rows of a file of scores, as of ten shards
_COPIES = 0.1  # share of the rows that copy an earlier one exactly, and as many nearly


def rows() -> list[Row]:
    """One row a step: its time on a million rows against that on ten times a hundred thousand."""
    measured: dict[int, list[dict[str, Any]]] = {SMALL: [], LARGE: []}
    with tempfile.TemporaryDirectory(prefix="atelier-growth-") as place:
        folders = {count: Path(place) / str(count) for count in (SMALL, LARGE)}
        for count, folder in folders.items():
            folder.mkdir()
            _process("make", count, folder)
        for run in range(RUNS):
            for count, folder in folders.items():
                measured[count].append(_measured(count, folder))
                print(f"  growth: {LARGE // count} of {count} rows, run {run + 1}: {measured[count][-1]}", flush=True)
    found = []
    peak = max(run["peak_mb"] for run in measured[LARGE])
    for step in measured[SMALL][0]["seconds"]:
        small = statistics.median(run["seconds"][step] for run in measured[SMALL])
        large = [run["seconds"][step] for run in measured[LARGE]]
        ratios = [seconds / small for seconds in large]
        note = (
            f"processor time {small:.2f} s for {LARGE // SMALL} tables of {SMALL:,} rows, "
            f"{statistics.median(large):.2f} s for one of {LARGE:,}"
        )
        if step == "all":
            note += f"; one process, {peak:,.0f} MB resident at its peak with a million rows, mapped files included"
        figure = f"growth from 100k to 1M rows: {step}"
        found.append(limit(figure, "x linear", ratios, TARGET, "<=", note, "linear growth"))
    return found


def _measured(count: int, folder: Path) -> dict[str, Any]:
    done = _process("measure", count, folder, LARGE // count)
    result: dict[str, Any] = json.loads(done.splitlines()[-1])
    return result


def _process(what: str, count: int, folder: Path, tables: int = 1) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.data_growth", what, str(count), str(folder), str(tables)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout


def measure(count: int, folder: Path, tables: int) -> dict[str, Any]:
    """Processor seconds of every step on so many tables of so many rows, and the process's peak of memory."""
    from components.contracts.recipe import Recipe
    from components.data.deciding import Captions, Decision, decide
    from components.data.dedup import find_duplicates
    from components.data.expectations import ledger_suites, row_suites, score_table, summary_suites
    from components.data.filtering import rejections
    from components.data.preparing import make_rows, row_table
    from components.data.profiles import profile
    from components.data.scores import Part, Scores
    from components.data.takedown import Blocklist
    from components.data.validation import Gate
    from components.data.writing import Rows, alternatives_of, write_dropped, write_duplicates

    parts = [Part(0, str(path), "") for path in sorted(folder.glob("[0-9]*.parquet"))]
    recipe = Recipe.model_validate({"name": "growth", "prepare": {"alternatives": True, "max_dropped": 1.0}})
    rules, seconds = recipe.prepare, dict[str, float]()
    gates = [Gate(folder / f"docs-{n}") for n in range(tables)]  # opening one costs the same for any number of rows

    def timed(step: str, work: Callable[[int], T]) -> list[T]:
        started = time.process_time()
        results = [work(n) for n in range(tables)]
        seconds[step] = round(time.process_time() - started, 3)
        return results

    def check_ledger(n: int) -> None:
        ledger = pq.read_table(folder / "ledger.parquet")
        suites, _ = ledger_suites("collection", ledger, {}, 0.0, True)
        assert not any(gates[n].hold(suite) for suite in suites) and not gates[n].failed

    def rows_of(n: int) -> Rows:
        return make_rows(decisions[n], captions[n], None)[0]

    def check_rows(n: int) -> None:
        measures = score_table(scores[n], made[n].at, rules)
        for suite in row_suites(row_table(decisions[n], made[n]), measures, rules, ["32x32"]):
            assert not gates[n].hold(suite)
        summary = {"rows": float(len(made[n].at)), "train": float(len(made[n].at)), "holdout": 1.0}
        for suite in summary_suites(summary | {"dropped_share": 0.2}, rules, None):
            gates[n].hold(suite)
        profile(measures)
        assert not gates[n].failed

    def decided(n: int) -> Decision:
        return decide(scores[n], rules, recipe.run, Blocklist(), {})

    def duplicates(n: int) -> Any:
        return find_duplicates(scores[n], filters[n].kept, rules, recipe.run, 10 * LARGE)

    timed("expectations on the ledger", check_ledger)
    scores = timed("read the scores", lambda n: Scores(parts))
    filters = timed("filters", lambda n: rejections(scores[n], rules, Blocklist()))
    timed("exact and near duplicates", duplicates)
    decisions = [decided(n) for n in range(tables)]  # both again, and not counted twice
    captions = [Captions(of, rules) for of in scores]
    made = timed("splits, tokenizer and tokens", rows_of)
    timed("expectations on rows and scores", check_rows)
    timed("table of duplicates", lambda n: write_duplicates(decisions[n], captions[n], folder / f"copies-{n}"))
    timed("alternative captions", lambda n: alternatives_of(made[n], decisions[n], captions[n]))
    timed("table of dropped rows", lambda n: write_dropped(decisions[n], captions[n], folder / f"dropped-{n}"))
    dropped = decisions[0].counts()
    assert dropped["duplicate_exact"] > 0.05 * count and dropped["duplicate_near"] > 0.05 * count
    seconds["all"] = round(sum(seconds.values()), 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": count, "seconds": seconds, "peak_mb": round(peak), "dropped": dropped}


def make(count: int, folder: Path) -> None:
    """Score files of so many rows, and the ledger that they would come from."""
    from components.data.scores import SCORE_SCHEMA

    draws = np.random.default_rng(7)
    words = np.array([f"word{i}" for i in range(8000)])
    number = np.arange(count)
    kind = draws.random(count)
    origin = np.where((kind < 2 * _COPIES) & (number > 0), (draws.random(count) * number).astype(np.int64), number)
    origin = np.where(origin[origin] == origin, origin, number)  # copies of originals only
    exact, near = (kind < _COPIES) & (origin != number), (kind >= _COPIES) & (origin != number)
    phash = draws.integers(0, 2**63, count, dtype=np.uint64)
    mirror = draws.integers(0, 2**63, count, dtype=np.uint64)
    flipped = np.uint64(1) << draws.integers(0, 63, count).astype(np.uint64)
    phash = np.where(exact, phash[origin], np.where(near, phash[origin] ^ flipped, phash))
    mirror = np.where(exact | near, mirror[origin], mirror)
    picture = np.where(exact, origin, number)
    ledger = []
    for first in range(0, count, _PART):
        mine = slice(first, min(first + _PART, count))
        n = mine.stop - first
        thumbs = np.stack([np.random.default_rng(int(o)).integers(0, 256, 768, dtype=np.uint8) for o in origin[mine]])
        texts = [" ".join(chosen) for chosen in words[draws.integers(0, 8000, (n, 8))]]
        columns = {
            "row": number[mine],
            "url": [f"http://a.example/pictures/{i}.jpg" for i in number[mine]],
            "caption": texts,
            "clean": texts,
            "sha256": [f"{i:064x}" for i in picture[mine]],
            "id": draws.integers(0, 2**64 - 1, n, dtype=np.uint64),
            "width": draws.integers(300, 2000, n),
            "height": draws.integers(300, 2000, n),
            "kept_width": [64] * n,
            "kept_height": [64] * n,
            "quality": draws.integers(60, 101, n),
            "grey_std": draws.gamma(4, 12, n).clip(0, 127) * (draws.random(n) > 0.02),
            "sharpness": draws.gamma(2, 300, n),
            "entropy": draws.uniform(3, 8, n),
            "pixel_sha256": [f"p{i:063x}" for i in picture[mine]],
            "phash": phash[mine],
            "phash_mirror": mirror[mine],
            "thumb": pa.array([row.tobytes() for row in thumbs], pa.binary(768)),
            "bucket": ["32x32"] * n,
            "language": ["en"] * n,
            "language_confidence": [0.9] * n,
            "words": [8] * n,
            "characters": [len(text) for text in texts],
            "repetition": draws.uniform(0, 0.3, n),
            "personal": [""] * n,
        }
        table = pa.table(
            [
                pa.array(columns[f.name]).cast(f.type) if f.name in columns else pa.nulls(n, f.type)
                for f in SCORE_SCHEMA
            ],
            schema=SCORE_SCHEMA,
        )
        path = folder / f"{first // _PART:05d}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=1)
        ledger.append(_ledger(table, path.stem))
    pq.write_table(pa.concat_tables(ledger), folder / "ledger.parquet", compression="zstd")


def _ledger(scores: pa.Table, shard: str) -> pa.Table:
    from components.contracts.records import LEDGER_SCHEMA

    n = scores.num_rows
    known = {name: scores[name] for name in ("row", "url", "caption", "sha256", "width", "height", "quality")}
    known |= {"status": ["success"] * n, "attempts": [1] * n, "bytes": [50_000] * n, "http_status": [200] * n}
    known |= {"shard": [shard] * n, "key": [f"{i:09d}" for i in scores["row"].to_pylist()]}
    columns = []
    for field in LEDGER_SCHEMA:
        value = known.get(field.name)
        if value is None:
            columns.append(pa.nulls(n, field.type))
        else:
            columns.append(
                value.cast(field.type) if isinstance(value, pa.ChunkedArray) else pa.array(value, field.type)
            )
    return pa.table(columns, schema=LEDGER_SCHEMA)


if __name__ == "__main__":
    rows_asked, place_given = int(sys.argv[2]), Path(sys.argv[3])
    if sys.argv[1] == "make":
        make(rows_asked, place_given)
    else:
        print(json.dumps(measure(rows_asked, place_given, int(sys.argv[4]))))
