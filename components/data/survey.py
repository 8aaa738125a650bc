"""Where in a store the samples of a takedown are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.data.removing import Mask, Texts, columns, parquet
from components.data.takedown import Blocklist
from components.runtime.storage import Artifact

DATA = (
    "text_states",
    "latents",
    "dataset",
    "subject",
    "scores",
    "collection",
)  # kinds with samples in them, in the order of removal
DATASETS = ("dataset", "subject")  # kinds with rows of a dataset in them
WORDS = ("judge", "assessment")  # kinds with captions in them


@dataclass(frozen=True)
class Marks:
    """Which rows go: by their address as it stands in the tables, or by the SHA-256 of the source's bytes.

    ``roots`` gives for each address and digest the rules that the user asked for.
    """

    roots: dict[str, frozenset[str]]

    @cached_property
    def _all(self) -> pa.Array:
        return pa.array(sorted(self.roots), pa.string())

    def of(self, table: pa.Table) -> Mask:
        """The rows of a table with ``url`` or ``sha256`` that go."""
        mask = np.zeros(table.num_rows, dtype=bool)
        for name in ("url", "sha256"):
            if name in table.column_names:
                column = table[name].cast(pa.string())
                mask |= pc.is_in(column, value_set=self._all).to_numpy(zero_copy_only=False)
        return mask

    def roots_of(self, table: pa.Table) -> set[str]:
        """The rules that the user asked for, of rows that go."""
        names = [name for name in ("url", "sha256") if name in table.column_names]
        values = {value for name in names for value in pc.unique(table[name]).to_pylist()}
        return set[str]().union(*(self.roots.get(value, ()) for value in values))


class Survey:
    """The artifacts of a store, looked through for a list of what was taken down.

    Args:
        artifacts: of the store.
        rules: the list in force.
        asked: the rules of which it is about; the others were asked for before.
        near: members of the same duplicate clusters as what was asked for go as well.

    Attributes:
        tables: by the artifact's URL, its parquet files with the names of their columns.
        near: other members of the duplicate clusters of what goes, which stay.
        marks: the rows that go. ids: theirs, with the rules because of which they go.
        texts: what may not be said any more.
    """

    def __init__(self, artifacts: Iterable[Artifact], rules: Blocklist, asked: Set[str], near: bool) -> None:
        self.artifacts = [a for a in artifacts if a.manifest.kind in (*DATA, *WORDS)]
        self.tables = {a.url: list(_tables(a)) for a in self.artifacts if a.manifest.kind in DATA}
        roots: dict[str, frozenset[str]] = {}
        for value, rule in self._asked(rules):
            because = rules.rules.get(rule, {}).get("because") or [rule]
            roots[value] = roots.get(value, frozenset()) | frozenset(because)
        roots |= self._bytes_of(roots)
        tied = self._near(Marks(roots), Marks({v: because for v, because in roots.items() if because & asked}))
        if near:
            roots |= {sha256: because for sha256, (_, because) in tied.items()}
            roots |= self._bytes_of(roots)
        self.near = [] if near else [row for row, _ in tied.values()]
        self.marks = Marks(roots)
        self.texts, self.ids = self._sayings()

    @property
    def pictures(self) -> dict[str, frozenset[str]]:
        """SHA-256 of the pictures that go, with the rules because of which they do."""
        return {value: roots for value, roots in self.marks.roots.items() if _is_digest(value)}

    def names_ids(self, table: pa.Table) -> bool:
        """Whether a table has rows that go by their ``id``."""
        if "id" not in table.column_names:
            return False
        return any((f"{i:016x}" if isinstance(i, int) else i) in self.ids for i in table["id"].to_pylist())

    def _asked(self, rules: Blocklist) -> Iterator[tuple[str, str]]:
        """Addresses and digests that the rules name, each with its rule."""
        pictures = [rule for rule in rules.rules if rule.startswith("sha256:")]
        yield from ((rule.removeprefix("sha256:"), rule) for rule in pictures)
        if len(pictures) == len(rules):
            return
        seen = set[str]()
        for artifact in self.artifacts:
            for name, known in self.tables.get(artifact.url, ()):
                if "url" in known:
                    for url in pc.unique(columns(f"{artifact.url}/{name}", ["url"])["url"]).to_pylist():
                        if url is not None and url not in seen:
                            seen.add(url)
                            if (found := rules.blocks(url=url)) is not None:
                                yield url, found
                elif "final_url" in known:  # redirected: the row's own address stands in the ledger
                    yield from self._redirected(artifact, name, rules)

    def _redirected(self, artifact: Artifact, name: str, rules: Blocklist) -> Iterator[tuple[str, str]]:
        fetches = columns(f"{artifact.url}/{name}", ["row", "final_url"])
        ends = dict(zip(fetches["row"].to_pylist(), fetches["final_url"].to_pylist(), strict=True))
        found = {row: rule for row, end in ends.items() if end and (rule := rules.blocks(url=end))}
        if found:
            ledger = columns(f"{artifact.url}/ledger.parquet", ["row", "url"])
            for row in ledger.filter(pc.is_in(ledger["row"], value_set=pa.array(list(found)))).to_pylist():
                if row["url"] is not None:
                    yield row["url"], found[row["row"]]

    def _bytes_of(self, roots: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Digests of the pictures at these addresses: exact copies elsewhere go with them."""
        marks, found = Marks(roots), dict[str, frozenset[str]]()
        for _, _, table in self._read("url", "sha256"):
            if "sha256" in table.column_names:
                for row in table.filter(pa.array(marks.of(table))).to_pylist():
                    if row["sha256"] is not None:
                        because = found.get(row["sha256"], roots.get(row["sha256"], frozenset()))
                        found[row["sha256"]] = because | roots.get(row.get("url"), frozenset())
        return found

    def _near(self, going: Marks, asked: Marks) -> dict[str, tuple[dict[str, Any], frozenset[str]]]:
        """By digest the pictures that would stay in the duplicate clusters of what was ``asked``; with its rules."""
        found: dict[str, tuple[dict[str, Any], frozenset[str]]] = {}
        for artifact, name, table in self._read("cluster", "url", "sha256", "tier"):
            if name != "duplicates.parquet":
                continue
            gone = table.filter(pa.array(asked.of(table)))
            because: dict[str, set[str]] = {}
            for row in gone.to_pylist():
                roots = (asked.roots.get(row[key], frozenset()) for key in ("url", "sha256"))
                because.setdefault(row["cluster"], set()).update(*roots)
            inside = pc.is_in(table["cluster"], value_set=pa.array(list(because), pa.string()))
            for row in table.filter(pc.and_(inside, pa.array(~going.of(table)))).to_pylist():
                known = {"url": row["url"], "sha256": row["sha256"], "tier": row["tier"], "dataset": artifact.digest}
                found.setdefault(row["sha256"], (known, frozenset(because[row["cluster"]])))
        return found

    def _sayings(self) -> tuple[Texts, dict[str, set[str]]]:
        """What may not be said any more, and the ids of the rows that go."""
        gone, ids = set[str](), dict[str, set[str]]()
        names = ("caption", "clean", "alternatives", "id")
        for _, _, table in self._read("url", "sha256", *names):
            rows = table.filter(pa.array(self.marks.of(table)))
            for name in {"caption", "clean"} & set(rows.column_names):
                gone |= {caption for caption in rows[name].to_pylist() if caption}
            if "alternatives" in rows.column_names:
                gone |= {caption for some in rows["alternatives"].to_pylist() for caption in some or ()}
            for row in rows.to_pylist() if "id" in rows.column_names else ():
                known = f"{row['id']:016x}" if isinstance(row["id"], int) else row["id"]
                roots = (self.marks.roots.get(row.get(name), ()) for name in ("url", "sha256"))
                ids.setdefault(known, set()).update(*roots)
        wanted = pa.array(sorted(gone), pa.string())
        for _, _, table in self._read("url", "sha256", "caption", "clean"):  # another sample says the same: it stays
            rows = table.filter(pa.array(~self.marks.of(table)))
            for name in {"caption", "clean"} & set(rows.column_names):
                gone -= set(rows[name].filter(pc.is_in(rows[name], value_set=wanted)).to_pylist())
        words = frozenset(value for value in self.marks.roots if "://" in value or _is_digest(value))
        return Texts(words, frozenset(gone)), ids

    def _read(self, *names: str) -> Iterator[tuple[Artifact, str, pa.Table]]:
        """These columns of every table that names samples by address or digest."""
        for artifact in self.artifacts:
            for name, known in self.tables.get(artifact.url, ()):
                if {"url", "sha256"} & set(known):
                    yield artifact, name, columns(f"{artifact.url}/{name}", list(names))


def _tables(artifact: Artifact) -> Iterator[tuple[str, list[str]]]:
    """The parquet files of an artifact with the names of their columns."""
    for name in sorted(artifact.manifest.files):
        if name.endswith(".parquet"):
            with parquet(f"{artifact.url}/{name}") as file:
                yield name, file.schema_arrow.names


def _is_digest(value: str) -> bool:
    return len(value) == 64 and value.isalnum()
