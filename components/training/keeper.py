"""Writing checkpoints beside the training: at most one at a time, and its failure is not kept quiet."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType

from components.training.checkpoint import Checkpoints, Mark, State


class Keeper:
    """Writes states on a thread of its own; used as a block, at whose end the last write is waited for."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()
        if kind is None:
            self.check()

    def keep(self, mark: Mark, state: State, notes: Mapping[str, bytes] | None = None) -> None:
        """Begin to write a state that nobody else changes; waits for the write before it.

        Raises:
            AtelierError: that one failed.
        """
        self._join()
        self.check()
        if state:  # only rank 0 has one
            self._writer = threading.Thread(target=self._write, args=(mark, state, notes), name="checkpoint")
            self._writer.start()

    def check(self) -> None:
        """Raise what went wrong in writing, if anything did."""
        if self._error:
            raise self._error

    def _write(self, mark: Mark, state: State, notes: Mapping[str, bytes] | None) -> None:
        try:
            self._checkpoints.write(mark, state, notes)
        except BaseException as error:  # raised again by check, on the thread that trains
            self._error = error

    def _join(self) -> None:
        if self._writer:
            self._writer.join()
            self._writer = None
