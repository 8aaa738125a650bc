"""The near tier on a million made-up hashes: time, recall, memory and growth: ``rows()``.

Seven in ten pictures are originals with hashes at random, the others copies of them: up to three bits of the hash
flipped, a third of them mirrored, the thumbnail changed a little. What is compared and found so is known. Each
measurement is a process of its own, so that its memory is its own:

    python -m tests.benchmarks.data_near {ray|growth}
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness import Row, limit

SMALL, LARGE = 100_000, 1_000_000
RUNS = 3
BITS, DISTANCE = 3, 6.0
_ORIGINALS = 0.7
_SAMPLE = 300  # pictures that are compared with all


@dataclass(frozen=True)
class Pictures:
    """Hashes and thumbnails (mapped from a file, as those of scores are), and the original of each picture."""

    plain: np.ndarray
    mirrored: np.ndarray
    thumbs: np.ndarray
    original: np.ndarray


def rows() -> list[Row]:
    """Time, recall and memory of a million on Ray; growth in one process."""
    runs = [_in_a_process("ray") for _ in range(RUNS)]
    growth = _in_a_process("growth")
    seconds = [run["seconds"] for run in runs]
    peak = [run["peak_mb"] for run in runs]
    about = runs[-1]["about"]
    small, large = (statistics.median(growth[str(n)]) for n in (SMALL, LARGE))
    ratios = [seconds / small / (LARGE / SMALL) for seconds in growth[str(LARGE)]]
    return [
        limit("near-dedup of 1M hashes on Ray, two cores", "s", seconds, 90, "<=", f"Ray's start included; {about}"),
        limit(
            f"near-dedup of 1M hashes on Ray: recall at d<={BITS}", "of 1", [run["recall"] for run in runs], 1.0, ">=",
            f"of {runs[-1]['pairs']} pairs, by comparing {_SAMPLE} pictures with all others",
            "brute force on a sample",
        ),
        limit(
            "near-dedup of 1M hashes on Ray: peak memory", "MB", peak, 4096, "<=",
            f"of all processes: this one, Ray's and {runs[-1]['cpus']} workers, Ray's object store of "
            f"{runs[-1]['store_mb']} MB included; {runs[-1]['before_mb']} MB of it are the hashes and what was "
            "imported. The 768 MB of thumbnails are mapped from a file: their pages are not counted, as the system "
            "may drop them at any time",
        ),
        limit(
            "growth from 100k to 1M rows: near tier in one process", "x linear", ratios, 1.15, "<=",
            f"{small:.2f} s for {SMALL:,} rows, {large:.2f} s for {LARGE:,}", "linear growth",
        ),
    ]  # fmt: skip


def make(n: int, seed: int = 0) -> Pictures:
    """So many pictures, in no order."""
    rng = np.random.default_rng(seed)
    originals = int(n * _ORIGINALS)
    original = np.concatenate([np.arange(originals), rng.integers(0, originals, n - originals)])
    original = original[rng.permutation(n)]
    copy = np.ones(n, dtype=bool)
    copy[np.unique(original, return_index=True)[1]] = False
    hashes = rng.integers(0, 2**64, (originals, 2), dtype=np.uint64)[original]
    flips = rng.integers(0, BITS + 1, n) * copy
    for flip in range(BITS):
        some = np.flatnonzero(flips > flip)
        hashes[some] ^= np.uint64(1) << rng.integers(0, 64, (len(some), 2)).astype(np.uint64)
    turned = copy & (rng.random(n) < 0.33)
    hashes[turned] = hashes[turned, ::-1]
    looks = rng.integers(8, 248, (4096, 16, 16, 3), dtype=np.uint8)
    with tempfile.TemporaryFile() as file:
        file.truncate(n * 768)
        thumbs = np.memmap(file, dtype=np.uint8, mode="r+", shape=(n, 16, 16, 3))
    for start in range(0, n, 20_000):
        part = slice(start, start + 20_000)
        change = rng.integers(-3, 4, (len(original[part]), 16, 16, 1), dtype=np.int8).view(np.uint8)
        thumbs[part] = looks[original[part] % len(looks)] + change  # bytes wrap round: -1 is 255
        thumbs[part][turned[part]] = thumbs[part][turned[part], :, ::-1]
    thumbs.flush()
    return Pictures(hashes[:, 0].copy(), hashes[:, 1].copy(), thumbs, original)


def on_ray() -> dict[str, Any]:
    """A million in Ray tasks."""
    from components.contracts.recipe import Run
    from components.data.near import near_labels_on_ray

    run, pictures = Run(cpus=2), make(LARGE)
    before = _private_mb()
    with _peak() as peak:
        started = time.perf_counter()
        labels = near_labels_on_ray(pictures.plain, pictures.mirrored, pictures.thumbs.__getitem__, BITS, DISTANCE, run)
        seconds = time.perf_counter() - started
    first = np.full(len(labels), -1)
    first[pictures.original[::-1]] = np.arange(len(labels))[::-1]
    right = bool(np.array_equal(labels, first[pictures.original]))
    recall, pairs = _recall(pictures, labels)
    clusters = len(np.unique(labels))
    return {
        "seconds": seconds, "peak_mb": max(peak), "before_mb": before, "recall": recall, "pairs": pairs,
        "cpus": run.cpus, "store_mb": run.object_store_mb,
        "about": f"{clusters:,} clusters, {'all as made' if right else 'NOT as made'}",
    }  # fmt: skip


def growth() -> dict[str, Any]:
    """Seconds of the near tier in this process, by number of rows, runs alternating."""
    from components.data.near import near_labels

    made = {n: make(n) for n in (SMALL, LARGE)}
    found: dict[str, list[float]] = {str(n): [] for n in made}
    for _ in range(RUNS):
        for n, pictures in made.items():
            started = time.perf_counter()
            near_labels(pictures.plain, pictures.mirrored, pictures.thumbs.__getitem__, BITS, DISTANCE)
            found[str(n)].append(time.perf_counter() - started)
    return found


def _recall(pictures: Pictures, labels: np.ndarray) -> tuple[float, int]:
    """Share of the near pairs of some pictures, found by comparing all, that are in one cluster."""
    hashes = (pictures.plain, pictures.mirrored)
    tied = total = 0
    for k in np.random.default_rng(1).choice(len(labels), _SAMPLE, replace=False).tolist():
        distances = [np.bitwise_count(a ^ b[k]) for a in hashes for b in hashes]
        near = np.flatnonzero(np.minimum.reduce(distances) <= BITS)
        near = near[near != k]
        one, others = pictures.thumbs[k].astype(int), pictures.thumbs[near].astype(int)
        apart = [np.abs(others - side).mean(axis=(1, 2, 3)) for side in (one, one[:, ::-1])]
        near = near[np.minimum(*apart) <= DISTANCE]
        tied += int((labels[near] == labels[k]).sum())
        total += len(near)
    return tied / total, total


@contextlib.contextmanager
def _peak() -> Iterator[list[int]]:
    """Memory of this process and all below it, in MB, ten times a second."""
    seen, ended = [_private_mb()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            seen.append(_private_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


def _private_mb() -> int:
    """Anonymous and shared memory of this process and its descendants: what is shared is shared out (PSS)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    tree = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    kilobytes = 0
    for pid in tree:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    kilobytes += int(line.split()[1])
    return kilobytes // 1024


def _in_a_process(what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.data_near", what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  near: {result}", flush=True)
    return result


if __name__ == "__main__":
    print(json.dumps({"ray": on_ray, "growth": growth}[sys.argv[1]]()))
