"""Fixtures that tests of the data components share."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from components.contracts.recipe import Recipe
from components.runtime.cluster import ray_session


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One small local Ray for all tests that ask for it; whatever starts Ray inside joins it."""
    with ray_session(Recipe(name="tests", run={"object_store_mb": 200}).run):
        yield


@pytest.fixture(autouse=True)
def _own_opener() -> Iterator[None]:
    """The engine governs every ``urlopen`` of a worker process; here later tests want theirs back."""
    before = urllib.request._opener  # type: ignore[attr-defined]
    yield
    urllib.request.install_opener(before)
