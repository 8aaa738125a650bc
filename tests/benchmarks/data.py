"""``make bench-data``: every figure of collecting and preparing, with its rival beside it.

    python -m tests.benchmarks.data [PART …]

Without arguments all parts are run. ``docs/benchmarks/data.{json,md}`` keeps the rows of the parts that are not run
now, each with its date.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from tests.benchmarks.harness import Row, table, update

PARTS = sorted(path.stem.removeprefix("data_") for path in Path(__file__).parent.glob("data_*.py"))
PACKAGES = ("img2dataset", "ray", "pillow", "numpy", "pyarrow", "imagehash", "great-expectations")
FIGURES = (  # their beginnings, in the order of the table
    "peak memory of a worker", "fetch", "growth", "hash speed", "near-dedup of 1M", "perturbation suite",
    "near-dedup of 5,000", "the same 5,000",
)  # fmt: skip


def main(names: list[str]) -> int:
    """Run the parts. Returns 1 where one of them failed, 2 where one is not known."""
    if unknown := sorted(set(names) - set(PARTS)):
        print(f"error: no part {', '.join(unknown)}. Expected: {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    rows: list[Row] = []
    failed = []
    for name in names or PARTS:
        print(f"{name}:", flush=True)
        try:
            found = importlib.import_module(f"tests.benchmarks.data_{name}").rows()
            rows += found
            sys.stdout.write(table(found))
        except Exception:  # what the other parts measured in many minutes is not thrown away
            traceback.print_exc()
            failed.append(name)
    update("data", "Collecting and preparing", rows, PACKAGES, FIGURES)
    if failed:
        print(f"error: these parts failed and are not in the table: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
