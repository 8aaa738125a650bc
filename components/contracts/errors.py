"""The one hierarchy of errors that a user may see.

    AtelierError
    ├── RecipeError        the recipe or an override is wrong             exit code 2
    ├── InputError         a list, file or argument given by the user     exit code 2
    ├── DataError          data did not meet its contract (the gate)      exit code 3
    ├── ArtifactError      a stored artifact is missing or damaged        exit code 4
    │   └── StoreFullError no room left in the store                      exit code 4
    ├── RuntimeUnavailable Ray, a port, or another local service          exit code 5
    ├── RegistryError      the MLflow registry cannot be reached          exit code 5
    ├── TrainingError      training diverged or cannot start              exit code 6
    └── GateRefused        the release gate did not pass the model        exit code 7

Every message says what was expected, what was found and what to do about it. Pass the three parts by
name; they are joined in one order, so that all messages read alike.
"""

from __future__ import annotations


class AtelierError(Exception):
    """Base of every error that is meant for the user: shown as one message, never as a traceback.

    Args:
        problem: what was found, and where.
        expected: what would have been right (optional).
        remedy: what the user can do now.
    """

    exit_code = 1

    def __init__(self, problem: str, *, expected: str = "", remedy: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.remedy = remedy
        super().__init__(problem, expected, remedy)

    def __str__(self) -> str:
        parts = [self.problem.rstrip(".") + "."]
        if self.expected:
            parts.append(f"Expected: {self.expected.rstrip('.')}.")
        if self.remedy:
            parts.append(f"Remedy: {self.remedy.rstrip('.')}.")
        return " ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive pickling between Ray workers
        return (_rebuild, (type(self), self.problem, self.expected, self.remedy))


def _rebuild(cls: type[AtelierError], problem: str, expected: str, remedy: str) -> AtelierError:
    return cls(problem, expected=expected, remedy=remedy)


class RecipeError(AtelierError):
    """A recipe file or a ``--set`` override is wrong."""

    exit_code = 2


class InputError(AtelierError):
    """A list, file or argument that the user gave is missing, unreadable or of the wrong shape."""

    exit_code = 2


class DataError(AtelierError):
    """Data did not meet its contract: an empty collection, a failed expectation."""

    exit_code = 3


class ArtifactError(AtelierError):
    """A stored artifact is missing, incomplete or does not match its checksums."""

    exit_code = 4


class StoreFullError(ArtifactError):
    """The store has no room left; what was finished before stays whole."""


class RuntimeUnavailable(AtelierError):
    """Ray, a port or another local service cannot be had."""

    exit_code = 5


class RegistryError(AtelierError):
    """The MLflow registry or tracking store cannot be reached or refused the call."""

    exit_code = 5


class TrainingError(AtelierError):
    """Training cannot start with this configuration, or its loss is no longer finite."""

    exit_code = 6


class GateRefused(AtelierError):
    """The release gate did not pass the model; the champion is unchanged."""

    exit_code = 7
