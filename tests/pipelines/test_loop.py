"""The whole loop at its smallest size: every stage, the real parts, in processes of their own.

One run is killed with SIGKILL in the middle of each kind of stage and finished by the same command; another is
left alone. Both must come to the same artifacts.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.runtime.storage import Artifact, Store

ROOT = Path(__file__).resolve().parents[2]
TINY = str(Path(__file__).with_name("tiny.yaml"))
MIDDLE = {  # label of the stage: what in its draft shows that it is in the middle of its work
    "collect": ("collection", "shards/*.parquet"),
    "prepare": ("dataset", "_state/*"),
    "autoencoder": ("autoencoder", "_state/curve.jsonl"),
    "denoiser": ("denoiser", "_state/curve.jsonl"),
    "assess": ("assessment", "_state/*"),
}

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(root: Path, port: int, *words: str) -> list[str]:
    where = ("--set", f"run.root={root}", "--set", f"collect.world.port={port}", "--set", f"run.port={free_port()}")
    return [sys.executable, "-m", "pipelines.cli", *words, "--recipe", TINY, *where]


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)


def kill_in_the_middle(arguments: list[str], store: Path, label: str) -> None:
    """Start the command, SIGKILL it while ``label`` is at work, and assert that this is what happened."""
    kind, evidence = MIDDLE[label]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
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


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()  # part of every URL, so both runs need the same one


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    """A finished `atelier demo` of the tiny recipe: the loop, served, drifted, trained again."""
    root = tmp_path_factory.mktemp("undisturbed")
    done = finish(command(root, port, "demo"))
    # so small a model draws nothing right: everything runs, and the demo says so and exits non-zero
    assert done.returncode == 7, done.stderr
    assert "The loop did not close: the second model is not better on the new prompts" in done.stderr
    return root / "tiny"


def only(store: Store, kind: str, position: int = 0) -> Artifact:
    return store.list(kind)[position]


def test_the_story_is_whole(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert [r["version"] for r in summary["releases"]] == [1, 2]
    assert all(r["verdict"] == "pass" and r["metrics"]["known"]["fidelity"]["n"] == 24 for r in summary["releases"])
    assert summary["drift"]["verdict"] == "retrain" and 0 < summary["drift"]["score"] <= 1
    assert summary["served"]["requests"] > 200 and summary["served"]["failures"] == 0
    assert set(summary["fidelity"]) == {f"{s}_prompts_v{v}" for s in ("old", "new") for v in (1, 2)}
    assert {"collect", "prepare", "train", "assess", "release", "serve", "watch", "total"} <= set(summary["seconds"])
    page = (undisturbed / "report.html").read_text()
    for word in ("orange", "Drift", "Releases", "data:image/png;base64", "<svg", "0 of "):
        assert word in page
    assert not re.search(r"""(src|href)=["']?https?:|url\(["']?https?:""", page)  # self-contained: nothing is fetched


def test_the_second_model_continues_the_first(undisturbed: Path) -> None:
    store = Store(str(undisturbed / "store"))
    first, second = store.list("model")
    for part in ("text_encoder", "autoencoder", "denoiser"):
        trained = store.by_digest(part, second.manifest.inputs[part])
        assert trained.manifest.inputs["start"] == first.manifest.inputs[part]
    dataset = store.by_digest("dataset", second.manifest.inputs["dataset"])
    assert len([role for role in dataset.manifest.inputs if role.startswith("collection")]) == 2


def test_again_returns_at_once(undisturbed: Path, port: int) -> None:
    started = time.monotonic()
    done = finish(command(undisturbed.parent, port, "run"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already done") >= 9 and "started" not in done.stderr
    print(f"run again: {time.monotonic() - started:.1f} s")


def test_looking(undisturbed: Path, port: int, tmp_path: Path) -> None:
    done = finish(command(undisturbed.parent, port, "status"))
    assert done.returncode == 0 and "champion" in done.stdout and "denoiser:" in done.stdout
    picture = tmp_path / "x.png"
    done = finish([*command(undisturbed.parent, port, "generate", "a red star"), "--output", str(picture), "-n", "2"])
    assert done.returncode == 0 and picture.read_bytes().startswith(b"\x89PNG"), done.stderr
    done = finish([*command(undisturbed.parent, port, "inspect", "dataset"), "--output", str(tmp_path / "x.html")])
    assert done.returncode == 0 and "<html" in (tmp_path / "x.html").read_text(), done.stderr


def test_a_damaged_artifact_is_named(undisturbed: Path, port: int) -> None:
    victim = only(Store(str(undisturbed / "store")), "collection")
    path = victim.path("ledger.parquet")
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + b"!")
        done = finish(command(undisturbed.parent, port, "run"))
        assert done.returncode == 4 and "ledger.parquet" in done.stderr and "Remedy" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        path.write_bytes(whole)


def test_killed_in_the_middle_of_any_stage(undisturbed: Path, port: int, tmp_path: Path) -> None:
    again = command(tmp_path, port, "run")
    for label in MIDDLE:
        kill_in_the_middle(again, tmp_path / "tiny" / "store", label)
    done = finish(again)
    assert done.returncode == 0, done.stderr
    expected, found = Store(str(undisturbed / "store")), Store(str(tmp_path / "tiny" / "store"))
    for kind in ("collection", "dataset"):
        assert only(found, kind).digest == only(expected, kind).digest
    for kind in ("text_encoder", "autoencoder", "denoiser"):
        one, other = only(found, kind).manifest, only(expected, kind).manifest
        assert one.counts == other.counts
        assert one.evidence["order_digest"] == other.evidence["order_digest"]
    assert len(found.list("release")) == 1
