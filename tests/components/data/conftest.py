"""Fixtures that tests of the data components share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from components.contracts.recipe import Recipe
from components.runtime.cluster import ray_session


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One small local Ray for all tests that ask for it; whatever starts Ray inside joins it."""
    with ray_session(Recipe(name="tests", run={"object_store_mb": 200}).run):
        yield
