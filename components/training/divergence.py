"""When a training must stop: the loss is no number, or far above what it was, for long."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

WINDOW = 64  # steps whose median is what the loss was
_PATIENCE = 20  # steps in a row above it
_ENOUGH = 20  # steps after which a median says something


class Divergence:
    """Watches the loss of every step.

    A loss above ``factor`` times what it was, ``_PATIENCE`` steps in a row, is called diverged: it does not come back.
    What it was is the running median, or the loss of the first step where that is lower or the median is not yet
    known; a loss below the first one is never too high. Steps that are too high do not enter the median.

    Args:
        factor: 0 looks only whether the loss is a number.
        seen: of an earlier run that is gone on with, as :meth:`state` gave it.
    """

    def __init__(self, factor: float, seen: Sequence[float] = ()) -> None:
        self._factor = factor
        self._start = seen[0] if seen else None
        self._window = deque(seen[1:], maxlen=WINDOW)
        self._high = 0

    def state(self) -> list[float]:
        """The first loss, then those of the window."""
        return [] if self._start is None else [self._start, *self._window]

    def check(self, loss: float) -> str | None:
        """What is wrong after a step of this loss, in words; None when nothing is."""
        if not math.isfinite(loss):
            return f"The loss is {loss}"
        if self._start is None:
            self._start = loss
        was = min(self._start, statistics.median(self._window)) if len(self._window) >= _ENOUGH else self._start
        if self._factor and was > 0 and loss > max(self._factor * was, self._start):
            self._high += 1
            if self._high >= _PATIENCE:
                return f"The loss is {loss:.4g}, for {self._high} steps above {self._factor:g} times {was:.4g}"
            return None
        self._high = 0
        self._window.append(loss)
        return None
