"""Prepare: from collections to one deduplicated, filtered, validated dataset.

Every picture is decoded once, when its collection is scored (:mod:`components.data.scoring`). Everything that
decides (filters, duplicates, splits, tokens, expectations) then reads scores alone, in the order of the collections,
so that neither workers nor their number change a byte, and a threshold that changes opens no picture again. The
pixels that stay are copied from the scores last, one row group at a time.

Files of a ``dataset``: ``data/part-00000.parquet`` (``SAMPLE_SCHEMA``), ``dropped.parquet`` (``DROPPED_SCHEMA``),
``duplicates.parquet`` (``DUPLICATES_SCHEMA``), ``tokenizer/``, ``validation.json``, ``profile.json`` (the scores'
distributions) and, outside its digest, ``circumstance/``: Data Docs, and the drift against the dataset before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts.errors import DataError
from components.contracts.manifest import CIRCUMSTANCE
from components.contracts.recipe import Prepare
from components.data.annotations import Annotations
from components.data.deciding import Captions, Decision, decide, split_of
from components.data.takedown import not_while_taking_down
from components.data.writing import Rows, alternatives_of, lengths, write_dropped, write_duplicates, write_parts
from components.runtime.progress import say
from components.runtime.stage import Context, run_stage
from components.runtime.storage import Artifact, Draft, Outcome


def prepare(
    ctx: Context, collections: Sequence[Artifact], tokenizer_from: Artifact | None = None, kind: str = "dataset"
) -> Artifact:
    """The dataset of these collections.

    Args:
        ctx: recipe, store and home.
        collections: oldest first. Adding a collection at the end leaves every cluster in the split that it was in,
            unless a new picture joins two of them.
        tokenizer_from: a dataset or model whose tokenizer is kept, byte for byte; else one is trained.
        kind: of the artifact; "subject" for pictures that an adapter alone is trained on.

    Raises:
        DataError: a collection is empty, nothing is left after the filters, or an expectation failed.
        RecipeError: a threshold is set for something that the recipe does not measure.
    """
    from components.data import scoring
    from components.data.filtering import require_measured

    rules = ctx.recipe.prepare
    require_measured(rules)
    if not collections:
        raise DataError("No collection was given to prepare", expected="at least one", remedy="run `atelier collect`")
    for collection in collections:
        if not collection.manifest.counts.get("success"):
            raise DataError(
                f"The collection {collection.short} holds no pictures",
                expected="at least one collected sample",
                remedy="look at its ledger.parquet for the reasons, then collect again",
            )
    scores = [scoring.score(ctx, collection) for collection in collections]
    inputs = {f"collection_{i:03d}": artifact for i, artifact in enumerate(collections)}
    inputs |= {f"scores_{i:03d}": artifact for i, artifact in enumerate(scores)}
    if tokenizer_from is not None:
        inputs["tokenizer"] = tokenizer_from
    # which models measured is told by the scores' digests, not by where they lie
    models = {name: getattr(rules, name) is not None for name in ("clip", "aesthetic", "embedding")}
    config = {**rules.identity(), **models, "min_collected": ctx.recipe.collect.min_collected}

    def build(draft: Draft) -> Outcome:
        not_while_taking_down(ctx.store.url)
        return _build(ctx, collections, scores, tokenizer_from, draft)

    reads = {role: "ledger" for role in inputs if role.startswith("collection_")}
    return run_stage(ctx, kind, inputs, config, build, label="prepare", reads=reads)


def _build(
    ctx: Context, collections: Sequence[Artifact], scored: Sequence[Artifact], tokenizer_from: Artifact | None,
    draft: Draft,
) -> Outcome:  # fmt: skip
    from components.data.scores import Scores
    from components.data.takedown import Blocklist
    from components.data.tokenizing import count_cut, write_tokenizer
    from components.data.validation import Gate

    rules, blocklist = ctx.recipe.prepare, Blocklist.of(ctx.store.url)
    gate = Gate(ctx.home / "data_docs" / draft.identity[:12])
    scores = Scores.of(scored)
    aside = check_ledgers(gate, collections, scores, ctx)
    decision = decide(scores, rules, ctx.recipe.run, blocklist, aside)
    captions, annotations = Captions(scores, rules), Annotations(collections, decision)
    rows, tokenizer = make_rows(decision, captions, tokenizer_from, annotations)
    rows, measures = check_rows(gate, decision, rows, ctx)
    summary = _summary(rows, decision)
    drift = check_summary(gate, summary, measures, ctx, draft)

    duplicates = write_duplicates(decision, captions, draft.dir / "duplicates.parquet")
    alternatives = alternatives_of(rows, decision, captions, annotations) if rules.alternatives else None
    if alternatives is None and annotations.several:
        say(f"prepare: {annotations.several} further captions are left out, since prepare.alternatives is false")
    write_parts(rows, decision, alternatives, draft.dir)
    write_dropped(decision, captions, draft.dir / "dropped.parquet")
    write_tokenizer(tokenizer, draft.dir / "tokenizer")
    cut = count_cut(tokenizer, rows.captions, rows.tokens, rules.max_tokens)
    if cut:
        say(f"prepare: {cut} of {len(rows.at)} captions are cut at prepare.max_tokens={rules.max_tokens} tokens")
    _write_reports(gate, summary, measures, drift, draft)
    kept = {"alternatives": sum(map(len, alternatives))} if alternatives is not None else {}
    counts = {"samples": len(scores), **{name: int(summary[name]) for name in ("rows", "train", "holdout")}}
    return Outcome(
        counts=counts,
        dropped=decision.counts(),
        evidence={
            "expectations": len(gate.results),
            "failed_expectations": sum(not r["success"] for r in gate.results),
            "duplicates": duplicates | kept,
            "captions_cut": cut,
            "takedown": blocklist.evidence(),
        },
        circumstance={"data_docs": str(gate.docs)},
    )


def check_ledgers(gate: Any, collections: Sequence[Artifact], scores: Any, ctx: Context) -> dict[int, str]:
    """Hold every collection's ledger against its suites.

    Returns:
        Positions of samples whose row fails an expectation, with its words.

    Raises:
        DataError: an expectation failed that is not about single rows, or quarantine is off.
    """
    from components.data.expectations import ledger_suites

    aside: dict[int, str] = {}
    for source, collection in enumerate(collections):
        ledger = pq.read_table(collection.path("ledger.parquet"))
        name = f"collection {source}" if len(collections) > 1 else "collection"
        least, quarantine = ctx.recipe.collect.min_collected, ctx.recipe.prepare.quarantine
        suites, ledger_rows = ledger_suites(name, ledger, collection.manifest.config, least, quarantine)
        failing = {int(ledger_rows[i]): words for suite in suites for i, words in gate.hold(suite).items()}
        if failing:
            mine = np.flatnonzero(scores.sources == source)
            hit = mine[np.isin(scores.rows[mine], list(failing))]
            aside |= {int(position): failing[int(scores.rows[position])] for position in hit}
    gate.require()
    return aside


def make_rows(
    decision: Decision, captions: Captions, tokenizer_from: Artifact | None, annotations: Annotations | None = None
) -> tuple[Rows, dict[str, bytes]]:
    """The rows that stay, with splits by cluster and tokens; and the files of their tokenizer.

    Where the source tells a split it holds, else the share ``prepare.holdout`` of the clusters is held out.
    """
    from components.data import tokenizing

    rules, at = decision.rules, decision.kept
    said, clusters = captions.of(at), decision.clusters(at)
    told = annotations.splits() if annotations else {}
    firsts = decision.firsts(at).tolist()
    splits = [told.get(f) or split_of(cluster, rules.holdout) for f, cluster in zip(firsts, clusters, strict=True)]
    if tokenizer_from is not None:
        tokenizer = tokenizing.copy_tokenizer(tokenizer_from, rules.max_tokens)
    else:
        also = annotations.alternatives(at) if annotations and rules.alternatives else [[] for _ in said]
        every = ([caption, *more] for caption, more in zip(said, also, strict=True))
        training = (c for texts, split in zip(every, splits, strict=True) if split == "train" for c in texts)
        tokenizer = tokenizing.train_tokenizer(training, rules.vocabulary, rules.max_tokens)
    return Rows(at, said, clusters, splits, tokenizing.encode(tokenizer, said, rules.max_tokens)), tokenizer


def check_rows(gate: Any, decision: Decision, rows: Rows, ctx: Context) -> tuple[Rows, pd.DataFrame]:
    """Hold the rows and their scores against their suites, and set aside what fails.

    Returns:
        The rows that are left, and their scores.
    """
    from components.data.buckets import bucket_sizes, step_of
    from components.data.expectations import row_suites, score_table

    rules = decision.rules
    sizes = [f"{w}x{h}" for w, h in bucket_sizes(rules.image_size, rules.buckets, step_of(ctx.recipe))]
    measures = score_table(decision.scores, rows.at, rules)
    aside: dict[int, str] = {}
    for suite in row_suites(row_table(decision, rows), measures, rules, sizes):
        aside = {**gate.hold(suite), **aside}
    if not aside:
        return rows, measures
    decision.quarantine({int(rows.at[i]): words for i, words in aside.items()})
    left = np.ones(len(rows.at), dtype=np.bool_)
    left[list(aside)] = False
    return rows.only(left), measures[left]


def row_table(decision: Decision, rows: Rows) -> pd.DataFrame:
    """What the gate looks at: one line a row, of numbers and short words."""
    scores = decision.scores
    table = pd.DataFrame(
        {
            "id": scores.ids[rows.at],
            "caption_characters": lengths(rows.captions),
            "sha256_characters": lengths(scores.sha256.take(pa.array(rows.at))),
            "tokens": pc.list_value_length(rows.tokens).to_numpy(zero_copy_only=False),
            "bucket": scores.texts("bucket").take(pa.array(rows.at)).to_pandas(),
            "split": rows.splits.to_pandas(),
        }
    )
    _, cluster = np.unique(decision.firsts(rows.at), return_inverse=True)
    held = np.bincount(cluster, weights=(table["split"] == "holdout").to_numpy())
    mixed = (held > 0) & (held < np.bincount(cluster))
    table["cluster_splits"] = 1 + mixed[cluster]
    return table


def check_summary(
    gate: Any, summary: dict[str, float], measures: pd.DataFrame, ctx: Context, draft: Draft
) -> dict[str, Any] | None:
    """Hold the dataset as a whole, and its scores against the dataset before, where the recipe asks.

    Returns:
        What was found of the drift, None where it was not asked or there is no dataset before.

    Raises:
        DataError: an expectation failed.
    """
    from components.data.expectations import summary_suites
    from components.data.profiles import drift

    found: dict[str, Any] | None = None
    rules: Prepare = ctx.recipe.prepare
    if rules.max_score_drift > 0:
        older = [d for d in ctx.store.list("dataset") if d.manifest.identity != draft.identity]
        older = [d for d in older if "profile.json" in d.manifest.files]
        if older:
            before = json.loads(older[-1].path("profile.json").read_text())
            found = {"before": older[-1].digest, "index": drift(before, measures)}
    for suite in summary_suites(summary, rules, found["index"] if found else None):
        gate.hold(suite)
    gate.require()
    return found


def _summary(rows: Rows, decision: Decision) -> dict[str, float]:
    split = {name: float(pc.sum(pc.equal(rows.splits, name)).as_py() or 0) for name in ("train", "holdout")}
    dropped = 1 - len(rows.at) / len(decision.scores)
    return {"rows": float(len(rows.at)), **split, "dropped_share": round(dropped, 6)}


def _write_reports(
    gate: Any, summary: dict[str, float], measures: pd.DataFrame, drift: dict[str, Any] | None, draft: Draft
) -> None:
    from components.data.profiles import profile

    # drift depends on what else the store holds: it is not part of what this dataset is
    results = [result for result in gate.results if result["table"] != "drift"]
    _write_json(draft.dir / "validation.json", {"summary": summary, "expectations": results})
    _write_json(draft.dir / "profile.json", profile(measures))
    circumstance = draft.dir / CIRCUMSTANCE
    shutil.rmtree(circumstance, ignore_errors=True)
    manual = shutil.ignore_patterns("*.gif", "*.otf", "iterative-dev-loop.png")  # of GX's own, megabytes
    shutil.copytree(gate.docs.parent, circumstance / "data_docs", ignore=manual)
    if drift:
        _write_json(circumstance / "drift.json", drift)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
