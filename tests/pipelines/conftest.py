"""What the tests of whole commands share: the command line of the tiny recipe, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.ports import unused_port

ROOT = Path(__file__).resolve().parents[2]
TINY = str(Path(__file__).with_name("tiny.yaml"))


def command(root: Path, port: int, *words: str) -> list[str]:
    where = ("--set", f"run.root={root}", "--set", f"collect.world.port={port}", "--set", f"run.port={unused_port()}")
    return [sys.executable, "-m", "pipelines.cli", *words, "--recipe", TINY, *where]


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=1800, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def tiny() -> SimpleNamespace:
    """``command(root, port, *words)`` with the world's website on ``port``, ``finish(arguments)``, and a free port."""
    return SimpleNamespace(command=command, finish=finish, port=unused_port(), root=ROOT)
