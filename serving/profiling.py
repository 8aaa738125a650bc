"""How long a step takes, and how many pictures are worth drawing together: measured when a model is loaded."""

from __future__ import annotations

import bisect
import time

from components.models.families import ImageGenerator
from components.models.stepping import Picture

Size = tuple[int, int]  # width and height, in pixels
_NEAR_BEST = 0.95  # of the most rows a second: as good as the most
_GAIN = 1.1  # rows a second by those of one row, below which drawing together is not worth it
_GUESS_S = 0.1  # of a step, where nothing was measured
_ROUNDS = 3


def measure(generator: ImageGenerator, size: Size, most: int, budget_s: float) -> dict[int, float]:
    """Seconds of a step by rows of the batch: 1, 2, 4 ... ``most``, the shortest of up to three times.

    Stops before ``budget_s`` is spent, or where memory does not suffice; one row is always measured.
    """
    found: dict[int, float] = {}
    generator.step(generator.begin([_asked(size, 0)]))  # what is set up only once is not in the figures
    began = time.monotonic()
    for turn in range(_ROUNDS):
        for rows in sorted({most, *(2**k for k in range(most.bit_length()))} if turn == 0 else found):
            spent, last = time.monotonic() - began, max(found.values(), default=0.0)
            if spent + 4 * last > budget_s * (1.0 if turn == 0 else 0.7):
                break
            try:
                taken = min(_steps(generator, size, rows))
            except Exception as error:
                if rows == 1 or not out_of_memory(error):
                    raise
                break
            found[rows] = max(1e-6, min(taken, found.get(rows, taken)))
    return found


def _steps(generator: ImageGenerator, size: Size, rows: int) -> list[float]:
    """Seconds of each of two steps of a batch (one, where the family takes one)."""
    drawings, taken = generator.begin([_asked(size, i) for i in range(rows)]), []
    while not drawings[0].done:
        started = time.monotonic()
        generator.step(drawings)
        taken.append(time.monotonic() - started)
    return taken


def _asked(size: Size, seed: int) -> Picture:
    return Picture("a warm-up", seed, steps=2, width=size[0], height=size[1])


def out_of_memory(error: Exception) -> bool:
    """Whether a GPU ran out of memory; told by name, so that torch need not be imported."""
    return type(error).__name__ == "OutOfMemoryError"


class Profile:
    """Of one model: seconds of a step by size and rows, and how many rows are worth a step.

    Args:
        measured: by size, as :func:`measure` gives it; empty: nothing is known, and the batch is as large as may be.
        own: the model's own size. most: rows of a step at most.
    """

    def __init__(self, measured: dict[Size, dict[int, float]], own: Size, most: int) -> None:
        self._measured, self._own, self._most = measured, own, most
        self._limits = {size: min(most, worthwhile(found)) for size, found in measured.items()}

    def limit(self, size: Size) -> int:
        """Rows that a step of pictures of this size is worth, at least 1: the fewest with nearly the most rows a
        second, and 1 where drawing together gains nothing."""
        if size not in self._limits:
            own = self._limits.get(self._own) if self._measured else None
            most = self._most if own is None else round(own / self._times(size))
            self._limits[size] = max(1, min(self._most, most))
        return self._limits[size]

    def shrink(self, size: Size, rows: int) -> None:
        """So many rows at most from now on: memory did not suffice for more."""
        self._limits[size] = max(1, min(self.limit(size), rows))

    def seconds(self, size: Size, rows: int) -> float:
        """Of a step with ``rows`` rows, as it was measured; between and beyond that along straight lines."""
        found, times = self._measured.get(size), 1.0
        if found is None:
            found, times = self._measured.get(self._own, {}), self._times(size)
        if not found:
            return _GUESS_S * times
        known = sorted(found)
        if rows <= known[0] or len(known) == 1:
            return times * found[known[0]] * max(1.0, rows / known[0])
        at = min(max(bisect.bisect_left(known, rows), 1), len(known) - 1)
        low, high = known[at - 1], known[at]
        slope = (found[high] - found[low]) / (high - low)
        return times * max(found[known[0]], found[low] + slope * (rows - low))

    def _times(self, size: Size) -> float:
        return (size[0] * size[1]) / (self._own[0] * self._own[1])


def worthwhile(found: dict[int, float]) -> int:
    """Rows of a batch by their measured seconds: see :meth:`Profile.limit`."""
    speed = {rows: rows / max(seconds, 1e-9) for rows, seconds in found.items()}
    best = max(speed.values())
    if best < _GAIN * speed[min(speed)]:
        return 1
    return min(rows for rows in speed if speed[rows] >= _NEAR_BEST * best)
