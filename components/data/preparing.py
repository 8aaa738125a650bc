"""Prepare: from collections to one deduplicated, filtered, validated dataset.

Every picture is decoded once (:mod:`components.data.scoring`). Everything that decides (filters, duplicates,
splits, tokens) then reads scores alone, in the order of the collections, so that neither workers nor their
number change a byte.

Files of a ``dataset``: ``data/part-00000.parquet`` (``SAMPLE_SCHEMA``), ``dropped.parquet``
(``DROPPED_SCHEMA``), ``tokenizer/`` and ``validation.json``. The Data Docs lie in ``data_docs/`` of the run.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts.errors import DataError
from components.contracts.recipe import Prepare
from components.contracts.records import DROPPED_SCHEMA, SAMPLE_SCHEMA, DropReason
from components.data.dedup import first_of_equal, near_clusters
from components.data.filtering import reject
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome

if TYPE_CHECKING:
    from components.data.scoring import Scores

PART_ROWS = 20_000
_GROUP_ROWS = 2_000  # rows of a parquet row group, fixed so that equal rows give equal bytes


def prepare(ctx: Context, collections: Sequence[Artifact], tokenizer_from: Artifact | None = None) -> Artifact:
    """The dataset of these collections.

    Args:
        ctx: recipe, store and home.
        collections: oldest first; of duplicates the one in the earliest collection survives. Adding a
            collection at the end leaves every cluster in the split that it was in.
        tokenizer_from: a dataset or model whose tokenizer is kept, byte for byte; else one is trained.

    Raises:
        DataError: a collection is empty, nothing is left after the filters, or an expectation failed.
    """
    rules = ctx.recipe.prepare
    if not collections:
        raise DataError("No collection was given to prepare", expected="at least one", remedy="run `atelier collect`")
    for collection in collections:
        if not collection.manifest.counts.get("success"):
            raise DataError(
                f"The collection {collection.short} holds no pictures",
                expected="at least one collected sample",
                remedy="look at its ledger.parquet for the reasons, then collect again",
            )
    inputs = {f"collection_{i:03d}": artifact for i, artifact in enumerate(collections)}
    if tokenizer_from is not None:
        inputs["tokenizer"] = tokenizer_from

    def build(draft: Draft) -> Outcome:
        return _build(ctx, collections, tokenizer_from, rules, draft)

    return run_stage(ctx, "dataset", inputs, rules.identity(), build, label="prepare")


def split_of(cluster: str, holdout: float) -> str:
    """The split of a cluster, from its id alone; the share ``holdout`` of all possible ids is held out."""
    number = int(hashlib.sha256(f"split:{cluster}".encode()).hexdigest()[:13], 16)
    return "holdout" if number < holdout * 16**13 else "train"


@dataclass
class _Decision:
    """What stays. ``kept`` are positions among the scores; the other lists run beside it."""

    kept: list[int]
    clusters: list[str]
    splits: list[str]
    dropped: dict[int, tuple[DropReason, str]]


def _build(
    ctx: Context, collections: Sequence[Artifact], tokenizer_from: Artifact | None, rules: Prepare, draft: Draft
) -> Outcome:
    from components.data import tokenizing, validation
    from components.data.scoring import Scores, score_all

    loading = threading.Thread(target=validation.load, daemon=True)  # a slow import, while the workers decode
    loading.start()
    scores = Scores(score_all(ctx, collections, draft))
    decision = decide(scores, rules)
    captions = [scores.captions[i] for i in decision.kept]
    if tokenizer_from is not None:
        tokenizer = tokenizing.copy_tokenizer(tokenizer_from, rules.max_tokens)
    else:
        training = [c for c, split in zip(captions, decision.splits, strict=True) if split == "train"]
        tokenizer = tokenizing.train_tokenizer(training, rules.vocabulary, rules.max_tokens)
    tokens = tokenizing.encode(tokenizer, captions, rules.max_tokens)
    table = _rows(scores, decision, tokens, rules)

    counts = {"samples": len(scores), "rows": table.num_rows}
    counts |= {split: decision.splits.count(split) for split in ("train", "holdout")}
    summary = {k: float(counts[k]) for k in ("rows", "train", "holdout")}
    summary["dropped_share"] = round(len(decision.dropped) / len(scores), 6)
    loading.join()
    docs = ctx.home / "data_docs" / draft.identity[:12]
    verdict = validation.validate(_metadata(table), summary, rules, docs)
    validation.require(verdict)

    _write_parts(table, draft)
    _write_dropped(scores, decision, draft)
    tokenizing.write_tokenizer(tokenizer, draft.dir / "tokenizer")
    report = {"summary": summary, "expectations": verdict.results}
    (draft.dir / "validation.json").write_text(
        json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    _clear_state(draft)
    reasons = Counter(str(reason) for reason, _ in decision.dropped.values())
    return Outcome(
        counts=counts,
        dropped=dict(sorted(reasons.items())),
        evidence={"expectations": len(verdict.results), "failed_expectations": len(verdict.failed)},
        circumstance={"data_docs": str(verdict.docs)},
    )


def decide(scores: Scores, rules: Prepare) -> _Decision:
    """Which samples stay, their clusters and splits, and why the others go.

    Raises:
        DataError: none stays.
    """
    dropped: dict[int, tuple[DropReason, str]] = {}
    for i in range(len(scores)):
        rejection = reject(scores.widths[i], scores.heights[i], scores.grey_stds[i], scores.captions[i], rules)
        if rejection is not None:
            dropped[i] = rejection
    for keys, what in ((scores.sha256, "bytes"), (scores.pixel_sha256, "pixels")):
        left = [i for i in range(len(scores)) if i not in dropped]
        for i, first in zip(left, first_of_equal([str(keys[i]) for i in left]), strict=True):
            if left[first] != i:
                dropped[i] = (DropReason.DUPLICATE_EXACT, f"the same {what} as {scores.urls[left[first]]}")
    left = [i for i in range(len(scores)) if i not in dropped]
    at = np.array(left, dtype=np.int64)
    # clusters are needed also where near-duplicates stay: they must not be torn apart by the split
    firsts = near_clusters(
        scores.phash[at], scores.phash_mirror[at], scores.thumbs(at), rules.phash_bits, rules.thumb_distance
    )
    kept, clusters = [], []
    for i, first in zip(left, firsts, strict=True):
        survivor = left[first]
        if survivor != i and rules.near_duplicates:
            dropped[i] = (DropReason.DUPLICATE_NEAR, f"nearly the same picture as {scores.urls[survivor]}")
        else:
            kept.append(i)
            clusters.append(scores.ids[survivor])
    if not kept:
        reasons = Counter(str(reason) for reason, _ in dropped.values()).most_common(4)
        raise DataError(
            f"No sample is left: all {len(dropped)} were dropped ({', '.join(f'{n} {r}' for r, n in reasons)})",
            expected="rows to train on",
            remedy="correct the thresholds in the recipe's prepare section, or collect other pictures",
        )
    return _Decision(kept, clusters, [split_of(c, rules.holdout) for c in clusters], dropped)


def _rows(scores: Scores, decision: _Decision, tokens: list[list[int]], rules: Prepare) -> pa.Table:
    kept, side = decision.kept, rules.image_size
    columns = {
        "id": [scores.ids[i] for i in kept],
        "url": [scores.urls[i] for i in kept],
        "caption": [scores.captions[i] for i in kept],
        "tokens": tokens,
        "pixels": scores.pixels(kept),
        "height": [side] * len(kept),
        "width": [side] * len(kept),
        "bucket": [f"{side}x{side}"] * len(kept),
        "cluster": decision.clusters,
        "split": decision.splits,
        "source": [scores.sources[i] for i in kept],
    }
    return pa.Table.from_pydict(columns, schema=SAMPLE_SCHEMA)


def _metadata(table: pa.Table) -> Any:
    """What the gate looks at: one line a row, without the pixels themselves."""
    import pyarrow.compute as pc

    frame = table.select(["id", "caption", "split", "cluster"]).to_pandas()
    frame["tokens"] = pc.list_value_length(table["tokens"]).to_numpy()
    frame["pixel_bytes"] = pc.binary_length(table["pixels"]).to_numpy()
    frame["cluster_splits"] = frame.groupby("cluster")["split"].transform("nunique")
    return frame


def _write_parts(table: pa.Table, draft: Draft) -> None:
    (draft.dir / "data").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, table.num_rows, PART_ROWS)):
        pq.write_table(
            table.slice(start, PART_ROWS),
            draft.dir / "data" / f"part-{number:05d}.parquet",
            row_group_size=_GROUP_ROWS,
            compression="zstd",
        )


def _write_dropped(scores: Scores, decision: _Decision, draft: Draft) -> None:
    rows = [
        {"url": scores.urls[i], "caption": scores.captions[i], "reason": str(reason), "detail": detail}
        for i, (reason, detail) in sorted(decision.dropped.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=DROPPED_SCHEMA), draft.dir / "dropped.parquet", compression="zstd")


def _clear_state(draft: Draft) -> None:
    """Remove the scores also from a remote store, where the draft's own folder is another one."""
    import fsspec

    fs, state = fsspec.core.url_to_fs(f"{draft.url}/_state")
    if fs.exists(state):
        fs.rm(state, recursive=True)
