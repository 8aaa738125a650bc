"""Ctrl-C in the middle of a training by Ray Train: one line, the usual exit code, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.components.training.watching import step_of, when

ROOT = Path(__file__).parents[3]
CODE = """
import sys
from pathlib import Path
from components.contracts.recipe import Run
from components.training.shell import run_training
from pipelines.options import run
from tests.components.training.tiny import Tiny
from tests.components.training.watching import OFTEN

pause_s, folder = float(sys.argv.pop()), Path(sys.argv.pop())

def command() -> None:
    made = run_training(Tiny(pause_s=pause_s), OFTEN, folder, Run(cpus=2, object_store_mb=100))
    print("steps", made["steps"])

run(command)
"""


@pytest.mark.integration
@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    def start(pause_s: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CODE, str(tmp_path), str(pause_s)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    process = start(1.0)  # long enough to be stopped in the middle, also where the machine is busy
    of_ray: list[psutil.Process] = []

    def stop() -> None:
        of_ray.extend(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGINT)

    watcher = when(lambda: step_of(tmp_path) >= 3, stop)
    said = process.communicate(timeout=900)[1]
    watcher.join()
    assert process.returncode == 130 and "Stopped. Run the same command again" in said and "Traceback" not in said, said
    reached = step_of(tmp_path)
    assert 3 <= reached < 24, "it was not stopped in the middle"
    gone, left = psutil.wait_procs(of_ray, timeout=180)
    assert gone and not left, f"left running: {left}"
    out, said = start(0.0).communicate(timeout=900)
    assert "steps 24" in out, said
