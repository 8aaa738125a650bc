"""A server of two replicas under load: what happens to it, no client notices. All of it is in `make bench-serve`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_no_request_fails_while_everything_happens_to_the_server(tmp_path: Path) -> None:
    from tests.benchmarks.serve_faults import run_faults

    found = run_faults(tmp_path, 400, ["promote", "crash at load", "kill"])
    assert found.failed == 0, found.errors
    assert found.ok >= 400 and list(found.done) == ["promote", "crash at load", "kill"]
    begun, answered = found.drained
    assert answered == begun > 0
