"""Killed with SIGKILL in the middle of each kind of stage, the same command finishes the work.

One run is killed and finished; another is left alone. Both must come to the same artifacts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.runtime.storage import Artifact, Store

MIDDLE = {  # label of the stage: what in its draft shows that it is in the middle of its work
    "collect": ("collection", "shards/*.parquet"),
    "score": ("scores", "scores/*.parquet"),
    "prepare": ("dataset", "duplicates.parquet"),
    "autoencoder": ("autoencoder", "_state/curve.jsonl"),
    "denoiser": ("denoiser", "_state/curve.jsonl"),
    "assess": ("assessment", "_state/*"),
}

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def kill_in_the_middle(arguments: list[str], cwd: Path, store: Path, label: str) -> None:
    """Start the command, SIGKILL it while ``label`` is at work, and assert that this is what happened."""
    kind, evidence = MIDDLE[label]
    process = subprocess.Popen(
        arguments, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))  # type: ignore[union-attr]
    reader.start()
    deadline = time.monotonic() + 240
    try:
        while not any(store.glob(f"{kind}/*/{evidence}")):
            assert process.poll() is None, f"ended before {label} was in the middle: {''.join(lines)}"
            assert time.monotonic() < deadline, f"{label} was never seen in the middle: {''.join(lines)}"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reader.join(timeout=30)
    assert f"{label}: started\n" in lines and not any(line.startswith(f"{label}: done") for line in lines)
    assert not list(store.glob(f"{kind}/*/manifest.json"))


def only(store: Store, kind: str) -> Artifact:
    return store.list(kind)[0]


def test_killed_in_the_middle_of_any_stage(tiny: SimpleNamespace, tmp_path: Path) -> None:
    again = tiny.command(tmp_path / "killed", tiny.port, "run")
    for label in MIDDLE:
        kill_in_the_middle(again, tiny.root, tmp_path / "killed" / "tiny" / "store", label)
    alone = tiny.command(tmp_path / "alone", tiny.port, "run")  # the same port: it is part of every URL
    for arguments in (again, alone):
        done = tiny.finish(arguments)
        assert done.returncode == 0, done.stderr
    expected, found = (Store(str(tmp_path / run / "tiny" / "store")) for run in ("alone", "killed"))
    for kind in ("collection", "dataset"):
        assert only(found, kind).digest == only(expected, kind).digest
    for kind in ("text_encoder", "autoencoder", "denoiser"):
        one, other = only(found, kind).manifest, only(expected, kind).manifest
        assert one.counts == other.counts
        assert one.evidence["order_digest"] == other.evidence["order_digest"]
    assert len(found.list("release")) == 1
