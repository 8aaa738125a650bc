"""``make bench-train``: every figure of the training engine, with its rival or limit beside it.

    python -m tests.benchmarks.train [PART …]

Without arguments the quick parts are run. ``fidelity`` (``fidelity32`` and ``fidelity64``, or one of them) trains
for up to an hour; ``gpu`` needs one. ``docs/benchmarks/train.{json,md}`` keeps the rows of the parts that are not run
now, each with its date.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from tests.benchmarks import train_fidelity, train_gpu, train_memory, train_speed
from tests.benchmarks.harness import Row, table, update

PARTS: dict[str, Callable[[], list[Row]]] = {
    "speed": train_speed.rows,
    "memory": train_memory.rows,
    "fidelity32": lambda: train_fidelity.rows("fidelity32"),
    "fidelity64": lambda: train_fidelity.rows("fidelity64"),
    "gpu": train_gpu.rows,
}
GROUPS = {"fidelity": ("fidelity32", "fidelity64"), "": ("speed", "memory")}
FIGURES = (*train_speed.FIGURES, *train_memory.FIGURES, *train_fidelity.FIGURES, *train_gpu.FIGURES)
PACKAGES = ("torch", "ray", "deepspeed", "diffusers", "accelerate", "transformers", "mlflow")


def main(names: list[str]) -> int:
    """Run the parts. Returns 1 where one of them failed, 2 where one is not known."""
    known = [*PARTS, *(name for name in GROUPS if name)]
    if unknown := sorted(set(names) - set(known)):
        print(f"error: no part {', '.join(unknown)}. Expected: {', '.join(known)}.", file=sys.stderr)
        return 2
    chosen = [part for name in names or [""] for part in GROUPS.get(name, (name,))]
    rows = [*train_fidelity.waiting(), *train_gpu.waiting()]  # rows of an earlier call are kept before these
    failed = []
    for name in dict.fromkeys(chosen):
        print(f"{name}:", flush=True)
        try:
            found = PARTS[name]()
            rows += found
            sys.stdout.write(table(found))
        except Exception:  # what the other parts measured in many minutes is not thrown away
            traceback.print_exc()
            failed.append(name)
    update("train", "The training engine", rows, PACKAGES, FIGURES)
    if failed:
        print(f"error: these parts failed and are not in the table: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
