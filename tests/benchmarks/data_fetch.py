"""Collecting against img2dataset's own command: the same server, pictures, cores, processes and threads.

Both sides are run as their users run them, as commands in processes of their own. Two times are taken of each:

* steady: from the first picture that the server was asked for to the last file that was written. Ours includes
  the checksums and the manifest; the start of either program is in neither.
* whole: from the start of the command to its end.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import Row, against
from tests.benchmarks.photo_site import PhotoSite, photo_site

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PICTURES, SHARD, PROCESSES, THREADS = {True: 3000, False: 6000}, 250, 2, 16  # pictures with and without resizing
RIVAL = "img2dataset 1.47.0, stock command"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true", "WANDB_MODE": "disabled",
               "NO_ALBUMENTATIONS_UPDATE": "1"}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What is made of a picture: reduced to 256 or kept as it came, and how the colours of a JPEG are kept."""

    resize: bool
    subsampling: str = "4:2:0"  # of a JPEG that is written; the rival knows no other

    @property
    def pictures(self) -> int:
        return PICTURES[self.resize]


@dataclass(frozen=True)
class Timing:
    """Of one run: pictures a second in steady work, and seconds of the whole command."""

    steady: float
    whole: float


def _timed(site: PhotoSite, number: int, command: list[str], output: Path, log: Path) -> Timing:
    site.times()
    started = time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=file, stderr=file)
    whole = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {log.read_text()[-2000:]}")
    asked = site.times()
    if len(asked) != number:
        raise RuntimeError(f"{command[0]} asked for {len(asked)} pictures of {number}")
    written = max(path.stat().st_mtime for path in output.rglob("*") if path.is_file())
    return Timing(number / (written - asked[0]), whole)


def _listed(site: PhotoSite, folder: Path, number: int) -> Path:
    path = folder / f"urls-{number}.txt"
    path.write_text("\n".join(site.urls(number)) + "\n")
    return path


def ours(site: PhotoSite, folder: Path, form: Form) -> Timing:
    """``atelier collect``, with guard, manners and ledger on as always."""
    recipe = {
        "name": "bench",
        "collect": {
            "urls": str(_listed(site, folder, form.pictures)), "image_size": 256, "shard_size": SHARD, "per_host": 64,
            "encode": "resize" if form.resize else "original", "jpeg_subsampling": form.subsampling,
            "allow_hosts": [f"127.0.0.1:{site.port}"],
        },
        "run": {"root": str(folder / "runs"), "cpus": PROCESSES, "collect_tasks": PROCESSES,
                "collect_threads": THREADS},
    }  # fmt: skip
    (folder / "bench.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    output = folder / "runs" / "bench" / "store"
    timing = _timed(
        site,
        form.pictures,
        [str(BIN / "atelier"), "collect", "--recipe", str(folder / "bench.yaml")],
        output,
        folder / "log",
    )
    manifest = json.loads(next(output.glob("collection/*/manifest.json")).read_text())
    if manifest["counts"]["success"] != form.pictures:
        raise RuntimeError(f"not all came: {manifest['counts']}, {manifest['dropped']}")
    shutil.rmtree(folder / "runs")
    return timing


def rival(site: PhotoSite, folder: Path, form: Form) -> Timing:
    """``img2dataset`` with the options that make the same of the pictures."""
    output = folder / "rival"
    made = (
        ["--resize_mode", "keep_ratio", "--image_size", "256"] if form.resize else ["--disable_all_reencoding", "True"]
    )
    command = [
        str(BIN / "img2dataset"), "--url_list", str(_listed(site, folder, form.pictures)),
        "--output_folder", str(output),
        "--output_format", "webdataset", "--number_sample_per_shard", str(SHARD),
        "--processes_count", str(PROCESSES), "--thread_count", str(THREADS), *made,
    ]  # fmt: skip
    timing = _timed(site, form.pictures, command, output, folder / "log")
    stats = [json.loads(path.read_text()) for path in output.glob("*_stats.json")]
    if sum(part["successes"] for part in stats) != form.pictures:
        raise RuntimeError(f"not all came: {stats}")
    shutil.rmtree(output)
    return timing


def _row(site: PhotoSite, folder: Path, figure: str, form: Form, target: float, runs: int, note: str) -> Row:
    wholes: dict[str, list[float]] = {"ours": [], "rival": []}

    def measured(name: str, side: Callable[[PhotoSite, Path, Form], Timing]) -> Callable[[], float]:
        def run() -> float:
            timing = side(site, folder, form)
            wholes[name].append(timing.whole)
            return timing.steady

        return run

    row = against(figure, "img/s", measured("ours", ours), RIVAL, measured("rival", rival), target, runs=runs)
    mine, theirs = (statistics.median(wholes[name]) for name in ("ours", "rival"))
    seconds = f"{form.pictures} pictures; the whole commands took {mine:.1f} s against {theirs:.1f} s. "
    return Row(**vars(row) | {"note": seconds + note})


def rows(runs: int = 5) -> list[Row]:
    """The rows of fetching."""
    how = (
        f"JPEGs of 1024x768 and about 155 KB from a loopback server on the same cores; {PROCESSES} processes of "
        f"{THREADS} threads and shards of {SHARD} on both sides; from the first picture asked for to the last file "
        "written, ours with checksums, manifest and all of it on the disk. "
    )
    keep_ratio = "Rival: --resize_mode keep_ratio."
    with photo_site() as site, tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name)
        return [
            _row(site, folder, "fetch and resize to 256", Form(True), 2.0, runs,
                 how + "JPEG of quality 95 and 4:2:0 on both sides. " + keep_ratio),
            _row(site, folder, "fetch and resize to 256, colours in full resolution", Form(True, "4:4:4"), 2.0, runs,
                 how + "JPEG of quality 95, ours 4:4:4 as the recipe's default is, the rival's 4:2:0. " + keep_ratio),
            _row(site, folder, "fetch without re-encoding", Form(False), 0.9, runs,
                 how + "Rival: --disable_all_reencoding, which looks at no byte; ours reads every header."),
        ]  # fmt: skip
