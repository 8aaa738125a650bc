"""The command line: help worth reading, and every bad input is one clear message with a remedy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.ports import unused_port

ROOT = Path(__file__).resolve().parents[2]
SUBCOMMANDS = [command.name for command in app.registered_commands]


def atelier(*arguments: str, script: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own; ``script`` runs a file of pipelines/ instead."""
    start = [sys.executable, script] if script else [sys.executable, "-m", "pipelines.cli"]
    return subprocess.run(
        [*start, *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=900,
        stdin=subprocess.DEVNULL,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """Assert one clear message: exit code, an ``error:`` line, no traceback, all of ``words``."""
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output, output
    message = output[output.rindex("error: ") :]
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    return message


def test_every_stage_has_a_subcommand() -> None:
    stages = {"run", "collect", "prepare", "train", "assess", "release", "serve", "watch", "finetune"}
    assert stages | {"status", "generate", "inspect", "demo"} <= set(SUBCOMMANDS)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 8


def test_recipe_shows_every_key() -> None:
    result = CliRunner().invoke(app, ["recipe", "demo", "--set", "prepare.min_rows=7"])
    assert result.exit_code == 0
    assert "min_rows: 7" in result.output and "zero_stage: 1" in result.output


def test_wrong_key() -> None:
    message = refused(
        atelier("train", "--recipe", "demo", "--set", "train.denoiser.imges=3"), 2, "train.denoiser.imges", "Remedy"
    )
    assert "did you mean 'images'" in message


def test_wrong_key_from_the_script() -> None:
    refused(atelier("--set", "a=1", script="pipelines/train.py"), 2, "unknown key 'a'")


def test_wrong_flag() -> None:
    done = atelier("train", "--nope")
    assert done.returncode == 2 and "--nope" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    """The schedule waits for its next time; Ctrl-C ends it with one line and the usual exit code."""
    arguments = ["watch", "--schedule", "0 3 * * *", "--set", f"run.root={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()  # it is up when it says when it will run next
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=180)[1]
    assert process.returncode == 130, said + rest
    assert "Stopped. Run the same command again" in rest and "Traceback" not in rest


def test_debug_shows_the_traceback() -> None:
    done = atelier("train", "--recipe", "nowhere", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr


def run_collect(tmp_path: Path, source: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return atelier(
        "collect", "--recipe", "demo", "--set", "collect.world=null", "--set", f"collect.urls={source}",
        "--set", f"run.root={tmp_path / 'runs'}", *more,
    )  # fmt: skip


def test_missing_list(tmp_path: Path) -> None:
    refused(run_collect(tmp_path, tmp_path / "no.csv"), 2, "no.csv", "Remedy")


def test_unreadable_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    refused(run_collect(tmp_path, tmp_path / "x.parquet"), 2, "x.parquet", "Remedy")


def test_list_without_captions(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://example.org/a.png"], "title": ["a"]}), tmp_path / "x.parquet")
    refused(run_collect(tmp_path, tmp_path / "x.parquet"), 2, "caption", "title", "Remedy")


def test_no_source(tmp_path: Path) -> None:
    done = atelier("collect", "--set", "collect.world=null", "--set", f"run.root={tmp_path}")
    refused(done, 2, "names no source", "collect.urls")


@pytest.mark.integration
def test_empty_collection(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("url,caption\nfile:///etc/passwd,a\nhttp://127.0.0.1:9/x.png,b\n")
    message = refused(run_collect(tmp_path, tmp_path / "x.csv"), 3, "Remedy")
    assert "refused_scheme" in message and "refused_address" in message
    done = atelier("status", "--set", f"run.root={tmp_path / 'runs'}")
    assert done.returncode == 0 and "Nothing yet" in done.stdout


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("url,caption\nhttp://127.0.0.1:9/x.png,b\n")
    (tmp_path / "runs").write_text("a file, not a folder")
    refused(run_collect(tmp_path, tmp_path / "x.csv"), 4, "cannot be written", "run.root")


@pytest.mark.integration
def test_store_without_room(tmp_path: Path) -> None:
    """A real file system of 1 MiB, where this user may mount one."""
    room = tmp_path / "room"
    room.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", room], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        port = unused_port()
        done = atelier(
            "collect", "--set", f"run.root={room}", "--set", f"collect.world.port={port}",
            "--set", "collect.world.pictures=600", "--set", "collect.world.faults=false",
        )  # fmt: skip
        refused(done, 4, "No room", "run.root")
    finally:
        subprocess.run(["umount", "--lazy", room], check=True)


@pytest.mark.integration
def test_ray_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("url,caption\nhttp://127.0.0.1:9/x.png,b\n")
    refused(run_collect(tmp_path, tmp_path / "x.csv", "--set", "run.object_store_mb=1"), 5, "Ray", "object_store_mb")


@pytest.mark.integration
def test_ray_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("url,caption\nhttp://127.0.0.1:9/x.png,b\n")
    done = run_collect(tmp_path, tmp_path / "x.csv", "--set", "run.ray_address=127.0.0.1:9")
    refused(done, 5, "127.0.0.1:9", "ray status")


def test_port_of_the_website_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = atelier(
            "collect", "--set", f"collect.world.port={port}", "--set", f"run.root={tmp_path}",
            "--set", "collect.world.pictures=20",
        )  # fmt: skip
    refused(done, 5, str(port), "Remedy")


def test_port_of_the_server_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = atelier("serve", "--set", f"run.port={port}", "--set", f"run.root={tmp_path}")
    refused(done, 5, str(port), "run.port")


def test_registry_that_is_down(tmp_path: Path) -> None:
    down = ("--set", "run.registry=http://127.0.0.1:9", "--set", f"run.root={tmp_path}")
    refused(atelier("generate", "a red star", *down), 5, "127.0.0.1:9", "Remedy")
    refused(atelier("release", "--rollback", *down), 5, "127.0.0.1:9", "Remedy")


def test_no_champion_yet(tmp_path: Path) -> None:
    for arguments in (["generate", "a red star"], ["watch"], ["finetune"]):
        refused(atelier(*arguments, "--set", f"run.root={tmp_path}"), 4, "champion", "atelier run")


def test_wrong_schedule(tmp_path: Path) -> None:
    refused(atelier("watch", "--schedule", "every day", "--set", f"run.root={tmp_path}"), 2, "every day", "Remedy")
