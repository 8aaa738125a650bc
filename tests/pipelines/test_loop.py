"""The whole loop at its smallest size: every stage, the real parts, in processes of their own; also killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from PIL import Image

from components.runtime.storage import Artifact, Store

MIDDLE = {  # label of the stage: what in its draft shows that it is in the middle of its work
    "collect": ("collection", "shards/*.parquet"),
    "score": ("scores", "scores/*.parquet"),
    "prepare": ("dataset", "duplicates.parquet"),
    "autoencoder": ("autoencoder", "_state/curve.jsonl"),
    "denoiser": ("denoiser", "_state/curve.jsonl"),
    "assess": ("assessment", "_state/*"),
}

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: SimpleNamespace) -> Path:
    """A finished `atelier demo` of the tiny recipe: the loop, served, drifted, trained again."""
    root = tmp_path_factory.mktemp("undisturbed")
    done = tiny.finish(tiny.command(root, tiny.port, "demo"))
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


def test_what_is_shown_of_it(undisturbed: Path, tiny: SimpleNamespace, tmp_path: Path) -> None:
    page = (undisturbed / "release.html").read_text()
    for word in ("atelier version 2", "Champion and challenger", "Nearest training pictures", "From worst to best"):
        assert word in page
    assert not re.search(r"""(src|href)=["']?https?:|url\(["']?https?:""", page)
    side = tmp_path / "side.html"
    done = tiny.finish(
        [*tiny.command(undisturbed.parent, tiny.port, "assess", "--against", "2"), "--output", str(side)]
    )
    assert done.returncode == 0 and f"assess: see {side}" in done.stderr, done.stderr
    assert "what the gate would say" in side.read_text()

    client = MlflowClient(f"sqlite:///{undisturbed / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    passes = {r.data.tags["pipeline"]: r for r in runs if "mlflow.parentRunId" not in r.data.tags}
    assert set(passes) == {"run", "retrain"} and all(r.data.tags["verdict"] == "pass" for r in passes.values())
    for name, above in passes.items():
        kinds = {r.data.tags["kind"] for r in runs if r.data.tags.get("mlflow.parentRunId") == above.info.run_id}
        made = {"collection", "scores", "dataset", "text_encoder", "autoencoder", "latents", "denoiser", "model"}
        assert kinds >= made | {"judge_clip", "judge", "assessment", "release"}, name
    assert {r.info.status for r in runs} == {"FINISHED"}
    trained = next(r for r in runs if r.info.run_name == "train denoiser")
    assert len(client.get_metric_history(trained.info.run_id, "loss")) > 1
    assert "dataset" in {d.dataset.name for d in trained.inputs.dataset_inputs}

    done = tiny.finish([*tiny.command(undisturbed.parent, tiny.port, "lineage", "2")])
    for word in ("urls", "success", "collection", "dataset", "denoiser", "assessment", "verdict pass", "run "):
        assert word in done.stdout, done.stdout + done.stderr


def test_again_returns_at_once(undisturbed: Path, tiny: SimpleNamespace) -> None:
    started = time.monotonic()
    done = tiny.finish(tiny.command(undisturbed.parent, tiny.port, "run"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already done") >= 9 and "started" not in done.stderr
    print(f"run again: {time.monotonic() - started:.1f} s")


def test_looking(undisturbed: Path, tiny: SimpleNamespace, tmp_path: Path) -> None:
    done = tiny.finish(tiny.command(undisturbed.parent, tiny.port, "status"))
    assert done.returncode == 0 and "champion" in done.stdout and "denoiser:" in done.stdout
    picture = tmp_path / "x.png"
    done = tiny.finish(
        [*tiny.command(undisturbed.parent, tiny.port, "generate", "a red star"), "--output", str(picture), "-n", "2"]
    )
    assert done.returncode == 0 and picture.read_bytes().startswith(b"\x89PNG"), done.stderr
    asked = ["--size", "32x16", "--sampler", "euler", "--negative", "blue", "--output", str(picture), "-n", "1"]
    done = tiny.finish([*tiny.command(undisturbed.parent, tiny.port, "generate", "a red star"), *asked])
    with Image.open(picture) as drawn:
        assert done.returncode == 0 and drawn.size == (16 * 32, 16 * 16), done.stderr  # enlarged
    done = tiny.finish([*tiny.command(undisturbed.parent, tiny.port, "generate", "a red star"), "--size", "32"])
    assert done.returncode == 2 and "WIDTHxHEIGHT" in done.stderr and "Traceback" not in done.stderr
    done = tiny.finish(
        [*tiny.command(undisturbed.parent, tiny.port, "inspect", "dataset"), "--output", str(tmp_path / "x.html")]
    )
    assert done.returncode == 0 and "<html" in (tmp_path / "x.html").read_text(), done.stderr


def test_a_damaged_artifact_is_named(undisturbed: Path, tiny: SimpleNamespace) -> None:
    victim = only(Store(str(undisturbed / "store")), "collection")
    path = victim.path("ledger.parquet")
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + b"!")
        done = tiny.finish(tiny.command(undisturbed.parent, tiny.port, "run"))
        assert done.returncode == 4 and "ledger.parquet" in done.stderr and "Remedy" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        path.write_bytes(whole)


# -- killed


def kill_in_the_middle(arguments: list[str], cwd: Path, store: Path, label: str) -> None:
    """Start the command, SIGKILL it while ``label`` is at work, and assert that this is what happened."""
    kind, evidence = MIDDLE[label]
    process = subprocess.Popen(
        arguments, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))  # type: ignore[union-attr]
    reader.start()
    deadline = time.monotonic() + 900
    try:
        while not any(store.glob(f"{kind}/*/{evidence}")):
            assert process.poll() is None, f"ended before {label} was in the middle: {''.join(lines)}"
            assert time.monotonic() < deadline, f"{label} was never seen in the middle: {''.join(lines)}"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reader.join(timeout=180)
    assert f"{label}: started\n" in lines and not any(line.startswith(f"{label}: done") for line in lines)
    assert not list(store.glob(f"{kind}/*/manifest.json"))


def test_killed_in_the_middle_of_any_stage(undisturbed: Path, tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Killed with SIGKILL in the middle of each kind of stage, the same command makes what the undisturbed one made."""
    again = tiny.command(tmp_path, tiny.port, "run")  # the same port: it is part of every URL
    for label in MIDDLE:
        kill_in_the_middle(again, tiny.root, tmp_path / "tiny" / "store", label)
    done = tiny.finish(again)
    assert done.returncode == 0, done.stderr
    expected, found = Store(str(undisturbed / "store")), Store(str(tmp_path / "tiny" / "store"))
    for kind in ("collection", "dataset"):
        assert only(found, kind).digest == only(expected, kind).digest
    for kind in ("text_encoder", "autoencoder", "denoiser"):
        one, other = only(found, kind).manifest, only(expected, kind).manifest
        assert one.counts == other.counts
        assert one.evidence["order_digest"] == other.evidence["order_digest"]
    assert len(found.list("release")) == 1
