"""What a judge keeps of real pictures: what its extractors say of held-out pictures and of a bounded number of the
training's, so that drawn pictures can be held against both.

File of the judge: ``kept.parquet``, a row a picture, ordered by split and id, which is a hash: ``id``, ``split``,
``sets`` (prompt sets that it belongs to) and, as ``{extractor}/{what}``, what each extractor says of it. A takedown
removes rows from it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.contracts.errors import DataError
from components.contracts.recipe import Run
from components.evaluation.extractor import Extractor, Pictures, Rows
from components.evaluation.extractors import OWN, packed, unpacked
from components.evaluation.features import FeatureCache, Said, content_of
from components.evaluation.prompts import rows_of, split_sources
from components.evaluation.spreading import spread
from components.runtime.storage import Artifact

LIMIT = 10_000  # pictures of a split that a prompt set is held against, at most; the first by id
HOLDOUT, TRAIN = "holdout", "train"
FILE = "kept.parquet"
_ROWS = 256  # of the dataset that are read at once
_BATCH = 128  # pictures that are looked at together
_ACTORS_FROM = 512  # pictures, from which actors are worth their start

Opened = Mapping[str, tuple[str, Path, str]]  # by name of the extractor: kind, folder, digest


@dataclass(frozen=True)
class Kept:
    """The pictures of one split: ids [R], row numbers by prompt set, arrays by extractor and what they are."""

    ids: tuple[str, ...]
    sets: dict[str, list[int]]
    arrays: dict[str, dict[str, Rows]]

    def rows(self, name: str, extractor: str = OWN, what: str = "features") -> Rows:
        """What an extractor says of the pictures that the prompt set ``name`` is held against."""
        return self.arrays[extractor][what][self.sets[name]]


def look_at_real(dataset: Artifact, names: list[str], opened: Opened, cache: Path, run: Run) -> dict[str, Kept]:
    """Held-out and training pictures of ``dataset``, seen by all extractors; by split.

    Args:
        names: of the prompt sets. A set that is neither ``known`` nor ``new`` is held against all collections.
        cache: folder of :class:`FeatureCache`.

    Raises:
        DataError: fewer than two held-out pictures for a set, or no training picture at all.
    """
    return {split: _kept(dataset, split, names, opened, cache, run) for split in (HOLDOUT, TRAIN)}


def write_kept(folder: Path, kept: Mapping[str, Kept]) -> None:
    """Write :data:`FILE`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for split, each in kept.items():
        sets: list[list[str]] = [[] for _ in each.ids]
        for name, rows in each.sets.items():
            for row in rows:
                sets[row].append(name)
        columns: dict[str, Any] = {"id": each.ids, "split": [split] * len(each.ids), "sets": sets}
        for name, said in each.arrays.items():
            for what, values in sorted(said.items()):
                flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
                columns[f"{name}/{what}"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), folder / FILE, compression="zstd")


def read_kept(judge: Artifact) -> dict[str, Kept]:
    """What :func:`write_kept` wrote into a judge, by split."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    whole = pq.read_table(judge.path(FILE))
    found = {}
    for split in (HOLDOUT, TRAIN):
        table = whole.filter(pc.equal(whole["split"], split)).combine_chunks()
        sets: dict[str, list[int]] = {name: [] for some in whole["sets"].to_pylist() for name in some}
        for row, names in enumerate(table["sets"].to_pylist()):
            for name in names:
                sets[name].append(row)
        arrays: dict[str, dict[str, Rows]] = {}
        for key in table.column_names[3:]:
            name, _, what = key.partition("/")
            values = table[key].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            arrays.setdefault(name, {})[what] = values.reshape(table.num_rows, -1)
        found[split] = Kept(tuple(table["id"].to_pylist()), sets, arrays)
    return found


class Looker:
    """Holds extractors; one to an actor. ``parts[0]`` refers to what :func:`~components.evaluation.extractors.packed`
    gave."""

    def __init__(self, parts: list[Any], threads: int) -> None:
        self._parts, self._threads = parts, threads
        self._opened: dict[str, Extractor] | None = None

    def work(self, piece: tuple[list[str], Pictures]) -> dict[str, dict[str, Rows]]:
        """What every extractor says of the pictures of a piece: their digests, and uint8 [N, H, W, 3]."""
        import ray
        import torch

        if self._opened is None:  # not in the constructor: an error there would kill the actor and lose its message
            torch.set_num_threads(self._threads)
            self._opened = unpacked(ray.get(self._parts[0]), "cuda" if torch.cuda.is_available() else "cpu")
        with exact():
            return {name: extractor.arrays(piece[1]) for name, extractor in self._opened.items()}


def exact() -> Any:
    """Context in which a GPU computes convolutions in fp32, not in TF32: features are those of the CPU."""
    import torch

    now = torch.backends.cudnn
    return now.flags(enabled=now.enabled, benchmark=now.benchmark, deterministic=now.deterministic, allow_tf32=False)


def _kept(dataset: Artifact, split: str, names: list[str], opened: Opened, cache: Path, run: Run) -> Kept:
    found = sorted((str(r["id"]), int(r["source"])) for r in rows_of(dataset, split, ["id", "source"]))
    groups = split_sources(source for _, source in found)
    everything = [source for group in groups.values() for source in group]
    chosen: dict[str, list[str]] = {}
    for name in names:
        sources = groups.get(name, everything)
        chosen[name] = [i for i, source in found if source in sources][:LIMIT]
        if len(chosen[name]) < 2 and split == HOLDOUT:
            raise DataError(
                f"{dataset.short} has {len(chosen[name])} held-out pictures for the prompt set {name!r}",
                expected="at least two",
                remedy="raise prepare.holdout or collect more pictures",
            )
    ids = sorted({i for some in chosen.values() for i in some})
    if not ids:
        raise DataError(f"{dataset.short} has no training pictures", expected="rows of the split train")
    place = {i: row for row, i in enumerate(ids)}
    arrays = _seen(dataset, split, place, opened, cache, run)
    return Kept(tuple(ids), {name: [place[i] for i in some] for name, some in chosen.items()}, arrays)


def _seen(
    dataset: Artifact, split: str, place: Mapping[str, int], opened: Opened, cache: Path, run: Run
) -> dict[str, dict[str, Rows]]:
    """What every extractor says of the pictures in ``place``, in that order; only what the cache lacks is looked at."""
    caches = {name: FeatureCache(cache, digest) for name, (_, _, digest) in opened.items()}
    known = frozenset.intersection(*(each.contents() for each in caches.values()))
    contents, fresh = [""] * len(place), {name: Said() for name in opened}

    def unknown() -> Iterator[tuple[str, Pictures]]:
        for i, picture in _pictures(dataset, split, place):
            contents[place[i]] = content_of(picture)
            if contents[place[i]] not in known:
                yield contents[place[i]], picture

    for batch, said in _looked(_batches(unknown()), len(place) if not known else 0, opened, run):
        for name, arrays in said.items():
            caches[name].keep(batch, arrays)
            fresh[name] |= {c: {what: rows[k] for what, rows in arrays.items()} for k, c in enumerate(batch)}
    found = {name: each.find(set(contents) - set(fresh[name])) | fresh[name] for name, each in caches.items()}
    return {
        name: {what: np.stack([said[c][what] for c in contents]) for what in said[contents[0]]}
        for name, said in found.items()
    }


def _looked(
    pieces: Iterator[tuple[list[str], Pictures]], most: int, opened: Opened, run: Run
) -> Iterator[tuple[list[str], dict[str, dict[str, Rows]]]]:
    """Each batch with what was said of it: on actors where there is much to do, with a GPU where there is one."""
    if most < _ACTORS_FROM or (len(opened) == 1 and not run.gpus_per_worker):
        from components.data.hub import one_thread
        from components.evaluation.extractors import open_extractor

        here: dict[str, Extractor] = {}
        with one_thread():  # the same bytes on machines with another number of cores
            for contents, pictures in pieces:
                here = here or {name: open_extractor(*found) for name, found in opened.items()}
                yield contents, {name: extractor.arrays(pictures) for name, extractor in here.items()}
        return
    count, threads = -(-most // _BATCH), run.threads_per_worker
    for (contents, _), said in spread(run, Looker, (threads,), pieces, count, shared=packed(opened)):
        yield contents, said


def _pictures(dataset: Artifact, split: str, ids: Container[str]) -> Iterator[tuple[str, Pictures]]:
    """Id and pixels uint8 [H, W, 3] of those rows of the split that are in ``ids``; a few are in memory at once."""
    import pyarrow.parquet as pq

    for path in dataset.paths("data/part-"):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS, columns=["id", "split", "pixels", "height", "width"]):
                names, splits = batch["id"].to_pylist(), batch["split"].to_pylist()
                for at, (name, of) in enumerate(zip(names, splits, strict=True)):
                    if of == split and name in ids:
                        side = batch["height"][at].as_py(), batch["width"][at].as_py(), 3
                        yield str(name), np.frombuffer(batch["pixels"][at].as_py(), np.uint8).reshape(side)


def _batches(pictures: Iterator[tuple[str, Pictures]]) -> Iterator[tuple[list[str], Pictures]]:
    """Batches of pictures of one shape (aspect buckets), with their digests; a picture that comes again only once."""
    waiting: dict[tuple[int, ...], dict[str, Pictures]] = {}
    for content, picture in pictures:
        batch = waiting.setdefault(picture.shape, {})
        batch[content] = picture
        if len(batch) == _BATCH:
            yield list(batch), np.stack(list(batch.values()))
            del waiting[picture.shape]
    for batch in waiting.values():
        yield list(batch), np.stack(list(batch.values()))
