"""``make bench-data``: every figure of collecting and preparing, with its rival beside it.

    python -m tests.benchmarks.data [PART …]

Without arguments all parts are run and ``docs/benchmarks/data.{json,md}`` are written. Parts that are named are
run and printed only.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

from tests.benchmarks.harness import Row, table, write

PARTS = sorted(path.stem.removeprefix("data_") for path in Path(__file__).parent.glob("data_*.py"))
PACKAGES = ("img2dataset", "ray", "pillow", "numpy", "pyarrow", "imagehash", "great-expectations")


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
            rows += importlib.import_module(f"tests.benchmarks.data_{name}").rows()
        except Exception:  # what the other parts measured in many minutes is not thrown away
            traceback.print_exc()
            failed.append(name)
    if names:
        sys.stdout.write(table(rows))
    else:
        write("data", "Collecting and preparing", rows, PACKAGES)
    if failed:
        print(f"error: these parts failed and are not in the table: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
