"""Hash speed with decode: JPEG files in, 64-bit perceptual hashes out, on one core.

The files are photographs of ``shared/data`` brought to 1024 x 768 where that folder is there, else photographs
made of noise and shapes; JPEG of quality 85. Both sides read the same bytes from memory, in this one process, on
one thread; what is counted is processor time, so that other programs on the machine do not blur the figures.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.benchmarks.harness import Row, against, write

PICTURES = 200
SIZE = (1024, 768)
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "grocery_photos.parquet"


def files(n: int = PICTURES) -> list[bytes]:
    """``n`` JPEG files of 1024 x 768, about 100 KB each."""
    found = []
    for image in _photographs(n) if PHOTOS.exists() else map(_made, range(n)):
        out = io.BytesIO()
        image.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS).save(out, "JPEG", quality=85)
        found.append(out.getvalue())
    return found


def _photographs(n: int) -> list[Image.Image]:
    import pyarrow.parquet as pq

    every = pq.read_table(PHOTOS, columns=["bytes"])["bytes"].to_pylist()
    return [Image.open(io.BytesIO(data)) for data in every[:: max(1, len(every) // n)][:n]]


def _made(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE, 3)
    draw = ImageDraw.Draw(coarse)
    for _ in range(20):
        x, y, side = rng.integers(0, SIZE[0]), rng.integers(0, SIZE[1]), rng.integers(20, 200)
        draw.ellipse([x, y, x + side, y + side], fill=tuple(rng.integers(0, 256, 3)))
    grain = rng.normal(0, 12, (SIZE[1], SIZE[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def rows(runs: int = 5) -> list[Row]:
    """One row: pictures a second and core, ours against ``imagehash.phash``."""
    import cv2
    import imagehash

    from components.data.hashing import phash_bytes

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        data = files()
        ours: list[int] = []
        theirs: list[int] = []

        def our_speed() -> float:
            started = time.process_time()
            ours[:] = [phash_bytes(file)[0] for file in data]
            return len(data) / (time.process_time() - started)

        def their_speed() -> float:
            started = time.process_time()
            hashes = [imagehash.phash(Image.open(io.BytesIO(file))) for file in data]
            spent = time.process_time() - started
            theirs[:] = [int(str(found), 16) for found in hashes]
            return len(data) / spent

        our_speed()  # caches and clock frequency
        row = against(
            "hash speed with decode", "img/s a core", our_speed, "imagehash.phash", their_speed, 5.0, runs=runs
        )
        bits = [(a ^ b).bit_count() for a, b in zip(ours, theirs, strict=True)]
    finally:
        cv2.setNumThreads(threads)
        os.sched_setaffinity(0, cores)
    kind = "photographs" if PHOTOS.exists() else "made pictures"
    note = (
        f"{len(data)} {kind}, JPEG {SIZE[0]}x{SIZE[1]}, {statistics.mean(map(len, data)) / 1000:.0f} KB on average; "
        f"ours gives the hash of the mirror image as well; it differs from imagehash's in {statistics.mean(bits):.2f} "
        f"of 64 bits on average, in {max(bits)} at most"
    )
    return [Row(**{**vars(row), "note": note})]


if __name__ == "__main__":
    write("data-hash", "Hash speed", rows(), ["imagehash", "opencv-python-headless", "pillow"])
