"""The watermark: how often it is read after what happens to pictures, how often where there is none, what it costs.

Photographs of ``shared/data`` where that folder is there, else pictures of noise and shapes; cut to squares and brought
to each size. Every picture is marked for a request of its own, changed, and read; a reading counts when it is that
request's. Unmarked pictures are read as well, photographs and random ones.

    python -m tests.benchmarks.watermark [pictures of each size, default 400] [unmarked readings, default 20000]
"""

from __future__ import annotations

import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.evaluation.intervals import wilson
from serving.watermark import Watermark, payload_of
from tests.benchmarks.data_hash import PHOTOS, _made, _photographs
from tests.benchmarks.harness import Row, limit, write

Pixels = NDArray[np.uint8]
SIZES = (256, 128, 64, 32)


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """The picture after JPEG of that quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def webp(pixels: Pixels, quality: int) -> Pixels:
    """The same with WebP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def scaled(pixels: Pixels, by: float) -> Pixels:
    """The picture at another size, bicubic."""
    side = round(pixels.shape[0] * by)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda p: p,
    "JPEG 90": lambda p: jpeg(p, 90),
    "JPEG 75": lambda p: jpeg(p, 75),
    "JPEG 50": lambda p: jpeg(p, 50),
    "WebP 80": lambda p: webp(p, 80),
    "half the size": lambda p: scaled(p, 0.5),
    "half the size, JPEG 75": lambda p: jpeg(scaled(p, 0.5), 75),
    "mirrored": lambda p: p[:, ::-1],
    "brighter (15 % and 8 levels)": lambda p: np.clip(p * 1.15 + 8, 0, 255).astype(np.uint8),
    "cropped by 5 %": lambda p: p[p.shape[0] // 20 :, p.shape[1] // 20 :],
    "turned by 2 degrees": lambda p: np.asarray(Image.fromarray(p).rotate(2, Image.Resampling.BICUBIC)),
}

WANTED = {"JPEG 75": 0.99, "half the size": 0.99, "half the size, JPEG 75": 0.95}  # of pictures of 256 pixels


def pictures(n: int) -> Iterator[Image.Image]:
    """``n`` square pictures of their own size."""
    for image in _photographs(n) if PHOTOS.exists() else map(_made, range(n)):
        rgb = image.convert("RGB")
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        yield rgb.crop((left, top, left + side, top + side))


def sized(image: Image.Image, side: int) -> Pixels:
    """The picture with ``side`` x ``side`` pixels."""
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


@dataclass
class Reading:
    """Of marked pictures of one size: how many were read after each change, their PSNR in dB, seconds to mark one."""

    right: dict[str, int]
    likeness: list[float]
    seconds: list[float]


def reading(side: int, n: int, mark: Watermark) -> Reading:
    """Mark ``n`` pictures of that size, and read them after each of :data:`CHANGES`."""
    found = Reading(dict.fromkeys(CHANGES, 0), [], [])
    for i, image in enumerate(pictures(n)):
        before, request = sized(image, side), f"request {side} {i}"
        start = time.process_time()
        marked = mark.embed(before, request)
        found.seconds.append(time.process_time() - start)
        error = float(((marked.astype(np.float64) - before) ** 2).mean())
        found.likeness.append(10 * math.log10(255**2 / max(error, 1e-9)))
        for name, change in CHANGES.items():
            found.right[name] += mark.read(change(marked)) == payload_of(request)
    return found


def unmarked(n: int, mark: Watermark) -> Row:
    """How often a mark is read where there is none: photographs of three sizes, the rest random pictures."""
    found = read = 0
    for image in pictures(min(n // 3, 1944)):
        for side in (256, 128, 32):
            found += mark.read(sized(image, side)) is not None
            read += 1
    rng = np.random.default_rng(0)
    while read < n:
        found += mark.read(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) is not None
        read += 1
    upper = wilson(found, read).high
    told = f"{found} of {read}; below {upper:.2g} with 95% confidence, by design 1 in 130,000"
    return limit("unmarked pictures that are taken for marked", "", [found / read], 1e-3, "<=", told)


def rows(found: dict[int, Reading], n: int) -> list[Row]:
    """What has a target: pictures of 256 pixels."""
    made = []
    for name, target in WANTED.items():
        share = wilson(found[256].right[name], n)
        told = f"{found[256].right[name]} of {n}; 95% interval {share.low:.3f} to {share.high:.3f}"
        made.append(limit(f"256 px, {name}: share read", "", [share.value], target, note=told))
    likeness = found[256].likeness
    told = f"lowest {min(likeness):.1f} dB"
    made.append(limit("256 px: PSNR of marked pictures, median", "dB", [statistics.median(likeness)], 38.0, note=told))
    return made


def matrix(found: dict[int, Reading], n: int) -> str:
    """All that was measured, also what has no target, as a Markdown table."""
    sizes = list(found)
    lines = [f"| share of {n} marked pictures that is read | {' | '.join(f'{side} px' for side in sizes)} |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for name in CHANGES:
        lines.append(f"| {name} | {' | '.join(f'{found[side].right[name] / n:.3f}' for side in sizes)} |")
    for what, values in {
        "PSNR, median (lowest), dB": [
            f"{statistics.median(f.likeness):.1f} ({min(f.likeness):.1f})" for f in found.values()
        ],
        "marking one, median, ms of one core": [f"{1e3 * statistics.median(f.seconds):.1f}" for f in found.values()],
    }.items():
        lines.append(f"| {what} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def main(n: int = 400, readings: int = 20_000) -> None:
    """Measure and write docs/benchmarks/watermark.{json,md}."""
    mark = Watermark(b"benchmark" * 4)
    found = {side: reading(side, n, mark) for side in SIZES}
    source = "photographs (grocery_photos.parquet)" if PHOTOS.exists() else "made pictures"
    made = [*rows(found, n), unmarked(readings, mark)]
    path = write("watermark", f"Watermark, on {source}", made, ("numpy", "pillow", "opencv-python-headless"))
    content = json.loads(path.read_text()) | {"pictures": n, "read": {str(s): f.right for s, f in found.items()}}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    page = path.with_suffix(".md")
    page.write_text(f"{page.read_text(encoding='utf-8')}\n{matrix(found, n)}", encoding="utf-8")
    print(matrix(found, n))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
