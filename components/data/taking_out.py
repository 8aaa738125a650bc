"""What artifacts are without the samples of a takedown."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.contracts.manifest import CIRCUMSTANCE
from components.contracts.records import CollectReason
from components.data.removing import HIDDEN, Content, Mask, Texts, columns, emptied, rewritten, tar_without, without
from components.data.survey import DATA, DATASETS, WORDS, Survey
from components.runtime.storage import Artifact

_TAKEN = str(CollectReason.TAKEN_DOWN)


@dataclass
class Plan:
    """An artifact without the samples: its changed files, each made when asked for, and its manifest's new fields."""

    artifact: Artifact
    files: dict[str, Callable[[], Content]] = field(default_factory=dict)
    counts: dict[str, int] | None = None
    dropped: dict[str, int] | None = None
    evidence: dict[str, Any] | None = None
    rules: set[str] = field(default_factory=set)
    removed: Counter[str] = field(default_factory=Counter)  # rows by what they were

    @property
    def note(self) -> dict[str, Any]:
        """For ``Manifest.revisions``."""
        return {"by": "takedown", "rules": sorted(self.rules), "removed": dict(sorted((+self.removed).items()))}


class Planner:
    """Makes the plans for what a survey has found; rewritten files go to ``folder``."""

    def __init__(self, survey: Survey, folder: Path) -> None:
        self._survey, self._base = survey, folder

    def plans(self) -> Iterator[Plan]:
        """What is to be done, in an order in which a kill loses no trace of what is left."""
        for kind in (*WORDS, *DATA):
            for artifact in self._survey.artifacts:
                if artifact.manifest.kind == kind:
                    plan = self._plan(artifact)
                    if plan.files or plan.evidence is not None:
                        yield plan

    def _folder(self, plan: Plan) -> Path:
        return self._base / plan.artifact.manifest.identity[:16]

    def _plan(self, artifact: Artifact) -> Plan:
        plan = Plan(artifact)
        if artifact.manifest.kind == "collection":
            self._collection(plan)
        elif artifact.manifest.kind in DATA:
            self._rows(plan)
        elif artifact.manifest.kind == "assessment":
            for name in ("per_prompt.parquet", "diversity.parquet"):
                self._drawn(plan, name)
        elif artifact.manifest.kind == "judge" and "kept.parquet" in artifact.manifest.files:
            self._keyed(plan, "kept.parquet", "id", set(), Counter())
        hidden = self._survey.texts.addresses.hidden(artifact.manifest.evidence)
        plan.evidence = hidden if hidden != artifact.manifest.evidence else None
        for name in ("prompts.json", "validation.json"):
            if name in artifact.manifest.files:
                self._json(plan, name, self._survey.texts if name == "prompts.json" else self._survey.texts.addresses)
        for name in artifact.manifest.files:
            if name.startswith(CIRCUMSTANCE) and name.endswith((".html", ".json")):
                self._page(plan, name)
        return plan

    def _collection(self, plan: Plan) -> None:
        """Samples out of the shards; ledger rows stay, one for every row of the list, and say nothing."""
        url, files = plan.artifact.url, plan.artifact.manifest.files
        ledger = columns(f"{url}/ledger.parquet", ["row", "url", "sha256", "status", "reason", "shard", "key"])
        mask = self._survey.marks.of(ledger)
        if not mask.any():
            return
        gone = ledger.filter(pa.array(mask))
        plan.rules = self._survey.marks.roots_of(gone)
        plan.removed.update(gone["status"].to_pylist())
        rows = pc.unique(gone["row"])

        def hits(table: pa.Table) -> Mask:
            return np.asarray(pc.is_in(table["row"], value_set=rows).to_numpy(zero_copy_only=False))

        for name, _ in self._survey.tables[url]:
            if hits(columns(f"{url}/{name}", ["row"])).any():
                plan.files[name] = _making(url, name, self._folder(plan), emptied(hits))
        for shard in pc.unique(gone["shard"].drop_null()).to_pylist():
            name = f"shards/{shard}.tar"
            keys = frozenset(gone.filter(pc.equal(gone["shard"], shard))["key"].to_pylist())
            if name in files:
                plan.files[name] = partial(tar_without, f"{url}/{name}", keys, self._folder(plan) / name)
        statuses = ledger.filter(pa.array(~mask))
        failed = Counter(reason for reason in statuses["reason"].to_pylist() if reason is not None)
        failed[_TAKEN] += len(gone)
        plan.dropped = dict(sorted(failed.items()))
        success = statuses["status"].to_pylist().count("success")
        figures = {"success": success, "failed": ledger.num_rows - success}
        plan.counts = {k: figures.get(k, v) for k, v in plan.artifact.manifest.counts.items()}

    def _rows(self, plan: Plan) -> None:
        """Rows out of scores, datasets and latents."""
        url, manifest = plan.artifact.url, plan.artifact.manifest
        counts, dropped, numbers = Counter(manifest.counts), Counter(manifest.dropped), set[int]()
        wider = self._alternatives(plan.artifact) if manifest.kind in DATASETS else None
        for name, known in self._survey.tables[url]:
            if not {"url", "sha256"} & set(known):
                continue
            table = columns(
                f"{url}/{name}", ["url", "sha256", "split", "reason", "row", "detail", "cluster", "kept_width"]
            )
            mask = self._survey.marks.of(table)
            gone = table.filter(pa.array(mask))
            plan.rules |= self._survey.marks.roots_of(gone)
            if name.startswith(("data/", "scores/")):
                what = gone["split"].to_pylist() if "split" in known else ["rows"] * len(gone)
                plan.removed.update(what)
                decoded = gone["kept_width"].drop_null() if "kept_width" in known else ()
                counts.subtract(
                    {"rows": len(gone), **Counter(what)}
                    if "split" in known
                    else {"samples": len(gone), "decoded": len(decoded)}
                )
                numbers |= set(gone["row"].to_pylist()) if "row" in known else set()
            elif name == "dropped.parquet":
                plan.removed["dropped"] += len(gone)
                dropped.subtract(Counter(gone["reason"].to_pylist()))
            other = table.filter(pa.array(~mask))
            detail = "detail" in known and self._survey.texts.told_by(other["detail"])
            told = wider is not None and "alternatives" in known and wider.concerns(other)
            if mask.any() or detail or told:
                plan.files[name] = _making(url, name, self._folder(plan), self._changed(wider if told else None))
        if manifest.kind in DATASETS and (taken := sum(plan.removed.values())):
            dropped[_TAKEN] += taken
        for name, known in self._survey.tables[url]:
            key = None if {"url", "sha256"} & set(known) else "row" if numbers else "id"
            if key is not None and key in known:
                self._keyed(plan, name, key, numbers, counts)
        plan.counts = {name: counts[name] for name in manifest.counts}
        plan.dropped = {reason: n for reason, n in sorted(dropped.items()) if n}

    def _keyed(self, plan: Plan, name: str, key: str, rows: set[int], counts: Counter[str]) -> None:
        """A table whose rows are named by another one: pixels by the scores' rows; latents and what a judge
        keeps by the dataset's ids."""
        url = plan.artifact.url
        wanted = pa.array(sorted(rows), pa.int64()) if key == "row" else pa.array(sorted(self._survey.ids), pa.string())

        def hits(table: pa.Table) -> Mask:
            return np.asarray(pc.is_in(table[key], value_set=wanted).to_numpy(zero_copy_only=False))

        table = columns(f"{url}/{name}", [key, "split"])
        gone = table.filter(pa.array(hits(table)))
        if not gone.num_rows:
            return
        plan.files[name] = _making(url, name, self._folder(plan), without(hits))
        if key == "id":
            plan.removed["rows"] += gone.num_rows
            counts["rows"] -= gone.num_rows
            if "split" in gone.column_names:
                counts.subtract(Counter(f"{split}_rows" for split in gone["split"].to_pylist()))
            plan.rules.update(*(self._survey.ids[i] for i in gone["id"].to_pylist()))

    def _changed(self, wider: Alternatives | None) -> Callable[[pa.Table], pa.Table]:
        def change(table: pa.Table) -> pa.Table:
            table = without(self._survey.marks.of)(table)
            if "detail" in table.column_names:
                at = table.schema.get_field_index("detail")
                table = table.set_column(at, table.schema.field(at), self._survey.texts.column(table["detail"]))
            return wider.without_gone(table) if wider else table

        return change

    def _alternatives(self, dataset: Artifact) -> Alternatives | None:
        if "duplicates.parquet" not in dataset.manifest.files:
            return None
        members = columns(f"{dataset.url}/duplicates.parquet", ["cluster", "url", "sha256", "caption"])
        mask = self._survey.marks.of(members)
        gone, stay = (_by_cluster(members.filter(pa.array(m))) for m in (mask, ~mask))
        return Alternatives({c: said - stay.get(c, set()) for c, said in gone.items()})

    def _json(self, plan: Plan, name: str, texts: Texts) -> None:
        value = json.loads(_bytes(f"{plan.artifact.url}/{name}"))
        hidden = texts.hidden(value)
        if hidden != value:
            plan.removed["texts"] += 1
            clean = json.dumps(hidden, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
            plan.files[name] = lambda: clean.encode()

    def _page(self, plan: Plan, name: str) -> None:
        """A page about the artifact goes when it says something of it: there is no taking a part out."""
        if self._survey.texts.said_in(_bytes(f"{plan.artifact.url}/{name}").decode(errors="replace")):
            plan.removed["pages"] += 1
            plan.files[name] = lambda: None

    def _drawn(self, plan: Plan, name: str) -> None:
        """Prompts that were such captions, and what the model drew of them."""
        if name not in plan.artifact.manifest.files:
            return
        captions = pa.array(sorted(self._survey.texts.captions), pa.string())

        def change(table: pa.Table) -> pa.Table:
            hit = pc.is_in(table["prompt"], value_set=captions)
            for column, value in (("prompt", HIDDEN), ("image", blank_png())):
                at = table.schema.get_field_index(column)
                table = table.set_column(at, table.schema.field(at), pc.if_else(hit, pa.scalar(value), table[column]))
            return table

        hits = pc.sum(
            pc.is_in(columns(f"{plan.artifact.url}/{name}", ["prompt"])["prompt"], value_set=captions)
        ).as_py()
        if hits:
            plan.removed["prompts"] += hits
            plan.files[name] = _making(plan.artifact.url, name, self._folder(plan), change)
            if "sheet.png" in plan.artifact.manifest.files:
                plan.files["sheet.png"] = blank_png


@dataclass(frozen=True)
class Alternatives:
    """Captions, by cluster, that only copies which go have said; the survivors may carry them as alternatives."""

    gone: dict[str, set[str]]

    def concerns(self, table: pa.Table) -> bool:
        """Whether one of the rows is of such a cluster."""
        clusters = pa.array([c for c, said in self.gone.items() if said], pa.string())
        return bool(pc.any(pc.is_in(table["cluster"], value_set=clusters)).as_py())

    def without_gone(self, table: pa.Table) -> pa.Table:
        """The rows of a dataset without them."""
        rows = zip(table["cluster"].to_pylist(), table["alternatives"].to_pylist(), strict=True)
        kept = [said and [c for c in said if c not in self.gone.get(cluster, ())] for cluster, said in rows]
        at = table.schema.get_field_index("alternatives")
        return table.set_column(at, table.schema.field(at), pa.array(kept, table.schema.field(at).type))


def blank_png() -> bytes:
    """A grey picture of 16 x 16, in place of one that may not be shown any more."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (206, 206, 202)).save(buffer, "PNG")
    return buffer.getvalue()


def _by_cluster(members: pa.Table) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for cluster, caption in zip(members["cluster"].to_pylist(), members["caption"].to_pylist(), strict=True):
        found.setdefault(cluster, set()).add(caption)
    return found


def _making(url: str, name: str, folder: Path, change: Callable[[pa.Table], pa.Table]) -> Callable[[], Content]:
    return lambda: rewritten(f"{url}/{name}", folder / name, change)


def _bytes(url: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(url)
    return bytes(fs.cat_file(path))
