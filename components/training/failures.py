"""What Ray Train does when workers fail: it starts them again, unless the error is meant for the user.

Imports Ray: to be imported where Ray is used only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from components.contracts.errors import AtelierError
from components.training.events import teller


class Failures(UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller. A refusal of our own ends the training; another failure is told of.

    Args:
        folder: of the training. limit: how often Ray Train starts the workers again.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit, self._seen = folder, limit, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called with what the workers raised or how they ended, by rank, before Ray Train decides.

        Raises:
            AtelierError: one of them did, or something it was caused by. Ray Train does not try again then.
        """
        for error in worker_exceptions.values():
            if refusal := refusal_in(error):
                raise refusal
        self._seen += 1
        if self._seen <= self._limit:
            ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
            tell = teller(self._folder)
            tell(f"workers of rank {ranks} failed; going on from the last checkpoint ({self._seen} of {self._limit})")


def refusal_in(error: BaseException | None) -> AtelierError | None:
    """The error of ours in a chain of errors that Ray has wrapped."""
    for seen in _chain(error):
        if isinstance(seen, AtelierError):
            return seen
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = (
            getattr(error, "controller_failure", None)
            or getattr(error, "cause", None)
            or getattr(error, "_base_exc", None)
            or error.__cause__
        )
