"""``make bench-serve``: every figure of the image API, with its rival or limit beside it.

    python -m tests.benchmarks.serve [quick] [PART …]

Without arguments all parts are run. With ``quick`` they are run for seconds, to see that they work, and nothing is
written. ``docs/benchmarks/serve.{json,md}`` keeps the rows of the parts that are not run now, each with its date.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from tests.benchmarks import serve_load, serve_speed
from tests.benchmarks.harness import Row, table, update
from tests.benchmarks.serve_setup import QUICK, Scale


def _faults(_: Scale) -> list[Row]:
    from tests.benchmarks import serve_faults

    return serve_faults.rows()


PARTS: dict[str, Callable[[Scale], list[Row]]] = {
    "throughput": serve_speed.throughput,
    "mixed": serve_speed.mixed,
    "lone": serve_speed.lone,
    "steady": serve_speed.steady,
    "overload": serve_load.overload,
    "memory": serve_load.memory,
    "faults": _faults,
}
SLOW = ("faults",)  # has no quick form
PACKAGES = ("torch", "ray", "diffusers", "transformers", "fastapi", "httpx")


def figures() -> tuple[str, ...]:
    """Beginnings of the figures, in the order of the table."""
    from tests.benchmarks import serve_faults

    return (*serve_speed.FIGURES, *serve_load.FIGURES, *serve_faults.FIGURES)


def main(names: list[str]) -> int:
    """Run the parts. Returns 1 where one of them failed, 2 where one is not known."""
    quick = "quick" in names
    names = [name for name in names if name != "quick"]
    if unknown := sorted(set(names) - set(PARTS)):
        print(f"error: no part {', '.join(unknown)}. Expected: quick, {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    rows, failed = [], []
    for name in names or [part for part in PARTS if not (quick and part in SLOW)]:
        print(f"{name}:", flush=True)
        try:
            found = PARTS[name](QUICK if quick else Scale())
            rows += found
            sys.stdout.write(table(found))
        except Exception:  # what the other parts measured in many minutes is not thrown away
            traceback.print_exc()
            failed.append(name)
    if not quick:
        update("serve", "The image API", rows, PACKAGES, figures())
    if failed:
        print(f"error: these parts failed and are not in the table: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
