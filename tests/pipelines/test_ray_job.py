"""`ray job submit --working-dir . -- python pipelines/train.py` against a Ray started by `ray start --head`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.runtime.cluster import quiet_environment
from components.runtime.storage import Store
from tests.ports import unused_port

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@dataclass(frozen=True)
class Head:
    dashboard: str
    env: dict[str, str]


@pytest.fixture
def head() -> Iterator[Head]:
    """A Ray head of its own on free ports; stopped by ending its process, and only its."""
    ports = [unused_port() for _ in range(4)]
    folder = tempfile.mkdtemp(prefix="atl-")  # a short path: sockets live below it
    # the job's `python` is found on the head's PATH: as after `source .venv/bin/activate`
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | quiet_environment() | {"RAY_AUTH_MODE": "disabled", "PATH": path}
    env.pop("RAY_ADDRESS", None)
    blocking = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=150000000",
            "--node-ip-address=127.0.0.1", f"--port={ports[0]}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}",
            f"--ray-client-server-port={ports[3]}", f"--temp-dir={folder}", "--disable-usage-stats",
        ],
        env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Head(f"http://127.0.0.1:{ports[1]}", env)
    finally:
        blocking.terminate()
        blocking.wait(timeout=300)
        shutil.rmtree(folder, ignore_errors=True)


def test_train_as_a_ray_job(head: Head, tmp_path: Path) -> None:
    deadline = time.monotonic() + 600
    listing = [RAY, "job", "list", "--address", head.dashboard]
    while subprocess.run(listing, env=head.env, capture_output=True).returncode:
        assert time.monotonic() < deadline, "the head's job server never answered"
        time.sleep(1)
    port = unused_port()
    done = subprocess.run(
        [
            RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--",
            "python", "pipelines/train.py", "--recipe", "demo", *tiny_settings(tmp_path, port),
        ],
        env=head.env,
        cwd=ROOT, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    models = Store(str(tmp_path / "demo" / "store")).list("model")
    assert len(models) == 1
    models[0].verify()


def tiny_settings(root: Path, port: int) -> list[str]:
    """Overrides that make the demo's recipe as small as tests/pipelines/tiny.yaml, which is not shipped to Ray."""
    import yaml

    tiny = yaml.safe_load((Path(__file__).with_name("tiny.yaml")).read_text())
    tiny["collect"]["world"]["port"] = port
    tiny["run"]["root"] = str(root)
    words = []
    for section, keys in tiny.items():
        if isinstance(keys, dict):
            for key, value in keys.items():
                words += ["--set", f"{section}.{key}={value!r}"]
    return words
