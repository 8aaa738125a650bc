"""Progress that people can read: a bar on a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


def say(message: str) -> None:
    """One line for the user on standard error, above any bar."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """Counts towards ``total`` with rate and remaining time.

    On a terminal a tqdm bar; otherwise a plain line at most every ``every_s`` seconds, with the rate since the line
    before it, and one at the end, with the rate of the whole.

    Args:
        what: label, e.g. ``"collect"``.
        total: amount of work, or None when unknown.
        unit: of the count, e.g. ``"img"``.
        initial: work already done by an earlier run that is being resumed.
    """

    def __init__(self, what: str, total: int | None, unit: str = "it", initial: int = 0, every_s: float = 10.0) -> None:
        from tqdm import tqdm

        self._bar: Any = None
        self._what, self._total, self._unit, self._every = what, total, unit, every_s
        self._done, self._initial = initial, initial
        self._started = self._said = time.monotonic()
        self._shown = initial  # by the line before
        if sys.stderr.isatty():
            self._bar = tqdm(desc=what, total=total, unit=unit, initial=initial, file=sys.stderr, leave=False)

    def update(self, done: int, note: str = "") -> None:
        """Set the amount done (absolute, not a step) and a short note such as the loss."""
        step, self._done = done - self._done, done
        # workers that died go on from a checkpoint: what is done may be less than it was
        self._shown, self._initial = min(self._shown, done), min(self._initial, done)
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
        elif (seconds := time.monotonic() - self._said) >= self._every:
            # since the line before: what starting took says nothing of the time that is left
            self._line((done - self._shown) / seconds, note)
            self._said, self._shown = time.monotonic(), done

    def close(self, note: str = "") -> None:
        """End the bar with a last line."""
        if self._bar is not None:
            self._bar.close()
        self._line((self._done - self._initial) / max(time.monotonic() - self._started, 1e-9), note)

    def _line(self, rate: float, note: str) -> None:
        of = f"/{self._total}" if self._total else ""
        left = (
            f", {(self._total - self._done) / rate:.0f} s left"
            if self._total and rate > 0 and self._done < self._total
            else ""
        )
        unit, note = self._unit, f", {note}" if note else ""
        say(f"  {self._what}: {self._done}{of} {unit}, {rate:.1f} {unit}/s{left}{note}")
