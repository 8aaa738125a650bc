"""Duplicates in all three tiers: the perturbation suite, and speed and recall beside imagededup.

The suite takes photographs, eleven copies of each, and hard negatives: other photographs of the same products,
emoji that differ in a skin tone or a clock's hand, boxes with one shape elsewhere. Truth: copies of one original
belong together, and pictures that are equal to the pixel or mirrored to the pixel; nothing else does.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.contracts.recipe import Prepare, Run
from tests.benchmarks import rivals
from tests.benchmarks.harness import Row, against
from tests.benchmarks.perturbations import (
    CHANGES,
    SHARED,
    TWENTY,
    cluster_precision,
    column,
    pair_figures,
    pictures,
)

ORIGINALS = 250
NEGATIVES = 500  # of each kind
RUNS = 5
PHASH_BITS = 10  # of the rival: imagededup's default
OUR_BITS = 8  # a mirror image and a better decode need fewer
PROCESSES = 2  # of both sides
FOLDER = Path(__file__).parents[2] / "build" / "benchmarks" / "copies"


@dataclass(frozen=True)
class Suite:
    """Pictures, the cluster that each belongs to, and how it was made ("original", "negative" or the change)."""

    images: list[Image.Image]
    truth: np.ndarray
    made: list[str]


def make_suite(originals: int = ORIGINALS, negatives: int = NEGATIVES, seed: int = 0) -> Suite:
    """The pictures; equal for equal arguments."""
    rng = np.random.default_rng(seed)
    images, truth, made = list[Image.Image](), list[int](), list[str]()
    photos = rng.permutation(len(column("grocery_photos", "label")))[: originals + negatives].tolist()
    for number, image in enumerate(pictures("grocery_photos", photos)):
        images.append(image)
        truth.append(number)
        made.append("original" if number < originals else "negative photo")
        for name, change in CHANGES.items() if number < originals else ():
            images.append(change(image, rng))
            truth.append(number)
            made.append(name)
    for name, places in (("emoji", _look_alike_emoji(negatives)), ("nlvr_boxes", None)):
        if places is None:
            places = rng.permutation(len(column(name, "caption")))[:negatives].tolist()
        for image in pictures(name, places):
            images.append(image)
            truth.append(len(truth) + len(CHANGES) * originals)
            made.append(f"negative {name}")
    return Suite(images, _joined(images, np.array(truth)), made)


def _look_alike_emoji(count: int) -> list[int]:
    """Emoji that differ from others in a skin tone or a clock's hand, ten neighbours each from all over the list.

    Those that point left or right are left out: another is the mirror image of each, and mirror images are copies.
    """
    names, styles = column("emoji", "name"), column("emoji", "style")
    order = sorted(range(len(names)), key=lambda i: (styles[i], names[i]))
    marks = ("skin tone", "o'clock", "thirty")
    alike = [i for i in order if any(m in names[i] for m in marks) and not re.search("left|right", names[i])]
    step = max(10, len(alike) * 10 // count)
    return [i for start in range(0, len(alike), step) for i in alike[start : start + 10]][:count]


def _joined(images: list[Image.Image], truth: np.ndarray) -> np.ndarray:
    """Pictures equal to the pixel, or to the mirrored pixel, belong together by definition."""
    seen: dict[bytes, int] = {}
    joined = truth.copy()
    for number, image in enumerate(images):
        values = np.asarray(image)
        key = repr(values.shape).encode() + min(values.tobytes(), np.ascontiguousarray(values[:, ::-1]).tobytes())
        first = seen.setdefault(key, number)
        if joined[first] != joined[number]:
            joined[joined == joined[number]] = joined[first]
    return joined


def score_pictures(images: Sequence[Image.Image], folder: Path) -> Any:
    """``Scores`` of pictures, with the built-in embedding, as scoring writes them."""
    from components.data import embedding, hashing
    from components.data.scores import SCORE_SCHEMA, Part, Scores
    from components.data.sketches import sketch

    embedder = embedding.load(embedding.BUILT_IN)
    rows = []
    for number, image in enumerate(images):
        measures = asdict(hashing.measure(image, (32, 32)))
        del measures["pixels"]
        rows.append(
            measures
            | {
                "row": number, "url": f"file:///{number}", "caption": "", "clean": "", "id": number,
                "sha256": f"{number:064x}", "width": image.width, "height": image.height, "quality": 100,
                "sketch": sketch(image), "embedding": embedder.embed([image])[0],
            }
        )  # fmt: skip
    path = folder / "scores.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), path)
    return Scores([Part(0, str(path), "")])


def rows() -> list[Row]:
    """All rows of this part."""
    if not SHARED.exists():
        raise FileNotFoundError(f"{SHARED} is not there: the suite is made of its photographs")
    return [*suite_rows(), *rival_rows()]


def suite_rows() -> list[Row]:
    """Precision and recall of all three tiers, against the hash alone."""
    from components.data.dedup import find_duplicates

    suite = make_suite()
    with tempfile.TemporaryDirectory() as folder:
        scores = score_pictures(suite.images, Path(folder))
        at = np.arange(len(scores), dtype=np.int64)
        begun = time.perf_counter()
        clusters = find_duplicates(scores, at, Prepare(embedding="atelier"), Run()).first
        seconds = time.perf_counter() - begun
        hash_pairs = _hash_pairs(scores.phash, PHASH_BITS)
    precision, recall = pair_figures(clusters, suite.truth)
    whole = cluster_precision(clusters, suite.truth)
    rival_precision, rival_recall = _pair_quality(hash_pairs, suite.truth)
    rival_clusters = cluster_precision(_components(len(at), hash_pairs), suite.truth)
    note = (
        f"{len(at)} pictures: {ORIGINALS} photographs and {len(CHANGES)} copies of each, "
        f"{NEGATIVES} look-alikes each of photographs, emoji and boxes; {seconds:.1f} s. "
        f"Tied to the original, by change: {_by_change(suite, clusters)}"
    )
    name = f"pHash within {PHASH_BITS} bits alone"
    return [
        _share("perturbation suite: pair precision", precision, name, rival_precision, 0.99, note),
        _share("perturbation suite: cluster precision", whole, name, rival_clusters, 0.99, ""),
        _share("perturbation suite: pair recall", recall, name, rival_recall, 0.95, ""),
    ]


def _share(figure: str, ours: float, name: str, rival: float, target: float, note: str) -> Row:
    return Row(
        figure, "of 1", ours, name, rival, ours / rival if rival else None, f">= {target:g}", ours >= target, None, 1,
        note,
    )  # fmt: skip


def _by_change(suite: Suite, clusters: np.ndarray) -> str:
    original = {int(t): i for i, (t, m) in enumerate(zip(suite.truth, suite.made, strict=True)) if m == "original"}
    parts = []
    for name in CHANGES:
        at = [i for i, made in enumerate(suite.made) if made == name]
        tied = np.mean([clusters[i] == clusters[original[int(suite.truth[i])]] for i in at])
        parts.append(f"{name} {tied:.3f}")
    return ", ".join(parts)


def _hash_pairs(hashes: np.ndarray, bits: int) -> np.ndarray:
    found = []
    for i in range(len(hashes) - 1):
        near = np.flatnonzero(np.bitwise_count(hashes[i + 1 :] ^ hashes[i]) <= bits)
        found.append(np.stack([np.full(len(near), i), near + i + 1], axis=1))
    return np.concatenate(found)


def _components(n: int, pairs: np.ndarray) -> np.ndarray:
    from components.data.clusters import Forest

    forest = Forest(n)
    forest.link(pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64))
    return forest.labels()


def rival_rows() -> list[Row]:
    """From 5,000 files to clusters, beside imagededup; then what all tiers find in them."""
    from components.data.dedup import find_duplicates

    files = _files()
    truth = np.repeat(np.arange(ORIGINALS), len(TWENTY))
    interpreter = rivals.python()
    theirs: dict[str, Any] = {}
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(PROCESSES) as pool:
        list(pool.map(_hashes, [files[:20]] * (4 * PROCESSES)))  # both sides are timed with their libraries loaded

        def ours() -> float:
            begun = time.perf_counter()
            parts = list(pool.map(_hashes, [files[k :: 4 * PROCESSES] for k in range(4 * PROCESSES)]))
            hashes = np.empty((len(files), 2), dtype=np.uint64)
            for k, part in enumerate(parts):
                hashes[k :: 4 * PROCESSES] = part
            found["pairs"] = _near_pairs(hashes, OUR_BITS)
            found["clusters"] = _components(len(files), found["pairs"])
            return time.perf_counter() - begun

        def rival() -> float:
            if interpreter is None:
                return float("nan")
            theirs.update(rivals.imagededup(interpreter, FOLDER, PROCESSES, PHASH_BITS))
            return float(theirs["hashing"] + theirs["search"])

        row = against(
            "near-dedup of 5,000 files: hashing and search", "s", ours, f"imagededup PHash, {PHASH_BITS} bits", rival,
            1 / 3, "<=", RUNS,
        )  # fmt: skip
    names = {file.name: number for number, file in enumerate(files)}
    mine = _pair_quality(found["pairs"], truth)
    if interpreter is None:
        missing = "imagededup's environment could not be made"
        return [replace(row, rival=None, ratio=None, holds=None, interval=None, note=missing)]
    other = _pair_quality(np.array([[names[a], names[b]] for a, b in theirs["pairs"]]), truth)
    note = (
        f"{PROCESSES} processes each, libraries loaded; ours: phash_bytes and hashes within {OUR_BITS} bits, mirror "
        f"images included. Pair precision and recall: ours {mine[0]:.4f} and {mine[1]:.3f}, imagededup {other[0]:.4f} "
        f"and {other[1]:.3f}"
    )
    row = replace(row, note=note, holds=bool(row.holds) and mine[0] >= other[0] and mine[1] >= other[1])
    images = [Image.open(file).convert("RGB") for file in files]
    with tempfile.TemporaryDirectory() as folder:
        scores = score_pictures(images, Path(folder))
        begun = time.perf_counter()
        clusters = find_duplicates(scores, np.arange(len(files)), Prepare(embedding="atelier"), Run()).first
        seconds = time.perf_counter() - begun
    precision, recall = pair_figures(clusters, truth)
    everything = _share(
        "the same 5,000 files, all tiers: pair recall", recall, "imagededup PHash", other[1], 0.9,
        f"pair precision {precision:.4f}; the tiers took {seconds:.1f} s in one process after scoring",
    )  # fmt: skip
    return [row, everything]


def _files() -> list[Path]:
    """250 photographs in twenty forms each, as JPEG of quality 90; made once."""
    count = ORIGINALS * len(TWENTY)
    if len(list(FOLDER.glob("*.jpg"))) != count:
        FOLDER.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        places = rng.permutation(len(column("grocery_photos", "label")))[:ORIGINALS].tolist()
        for number, image in enumerate(pictures("grocery_photos", places)):
            for form, change in enumerate(TWENTY.values()):
                change(image, rng).save(FOLDER / f"{number:03d}-{form:02d}.jpg", quality=90)
    return sorted(FOLDER.glob("*.jpg"))


def _hashes(files: list[Path]) -> np.ndarray:
    import cv2

    from components.data.hashing import phash_bytes

    cv2.setNumThreads(1)
    return np.array([phash_bytes(file.read_bytes()) for file in files], dtype=np.uint64)


def _near_pairs(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Pairs of pictures one of whose two hashes is within ``bits`` of one of the other's: (m, 2)."""
    from components.data.close_hashes import close_pairs

    n = len(hashes)
    values, of = np.unique(hashes.T.reshape(-1), return_inverse=True)
    members: list[np.ndarray] = np.split(np.argsort(of, kind="stable") % n, np.cumsum(np.bincount(of))[:-1])
    close = [np.stack(pair, axis=1) for pair in close_pairs(values, bits)]
    every = np.arange(len(values))
    close.append(np.stack([every, every], axis=1))
    found = {
        (min(a, b), max(a, b))
        for one, other in np.unique(np.concatenate(close), axis=0)
        for a in members[one].tolist()
        for b in members[other].tolist()
        if a != b
    }
    return np.array(sorted(found), dtype=np.int64)


def _pair_quality(pairs: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    same = truth[pairs[:, 0]] == truth[pairs[:, 1]]
    sizes = np.unique(truth, return_counts=True)[1]
    return float(same.mean()), float(same.sum() / (sizes * (sizes - 1) // 2).sum())
