"""What a list says of its rows beside URL and caption: further captions, and the split that its makers chose.

A list may have the columns ``alternatives`` (list of text) and ``split`` ("train", "holdout" or null). A collection
keeps them row by row in ``annotations.parquet``; ``prepare`` reads them from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.contracts.recipe import Prepare
from components.data.wording import clean_caption, listed, measure, redact
from components.runtime.storage import Artifact

if TYPE_CHECKING:
    from components.data.deciding import Decision

Ints = npt.NDArray[np.int64]
FILE = "annotations.parquet"
ANNOTATION_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # of the ledger: one row for every row of the list
        ("alternatives", pa.list_(pa.string())),  # as listed, without the row's own caption
        ("split", pa.string()),  # "train" | "holdout", null where the source says nothing
    ]
)
TRAIN, HOLDOUT = "train", "holdout"


def annotations_of(urls: pa.Table, hidden: pa.Array | None = None) -> pa.Table | None:
    """``ANNOTATION_SCHEMA`` of a list, None where it says nothing more than URLs and captions.

    Args:
        hidden: bool, row by row: of these nothing is told.
    """
    columns = {name: urls[name] for name in ("alternatives", "split") if name in urls.column_names}
    if not columns:
        return None
    rows = pa.array(range(urls.num_rows), pa.int64())
    given = [columns.get(field.name, pa.nulls(urls.num_rows, field.type)) for field in list(ANNOTATION_SCHEMA)[1:]]
    if hidden is not None:
        given = [pc.if_else(hidden, pa.scalar(None, column.type), column) for column in given]
    return pa.table([rows, *given], schema=ANNOTATION_SCHEMA)


def annotations_digest(urls: pa.Table) -> bytes:
    """What they add to the digest of a list; nothing where there are none."""
    table = annotations_of(urls)
    if table is None:
        return b""
    sha = hashlib.sha256()
    for row in table.to_pylist():
        sha.update(json.dumps([row["alternatives"], row["split"]]).encode())
    return sha.digest()


def read_annotations(collections: Sequence[Artifact]) -> dict[tuple[int, int], tuple[list[str], str | None]]:
    """Alternatives and split by (position of the collection, row of its ledger); rows that say nothing are left out."""
    found = {}
    for source, collection in enumerate(collections):
        if FILE in collection.manifest.files:
            collection.verify(FILE)
            for row in pq.read_table(collection.path(FILE), schema=ANNOTATION_SCHEMA).to_pylist():
                if row["alternatives"] or row["split"]:
                    found[source, row["row"]] = (row["alternatives"] or [], row["split"])
    return found


class Annotations:
    """The annotations of all samples that a decision is about."""

    def __init__(self, collections: Sequence[Artifact], decision: Decision) -> None:
        self._decision = decision
        self._known = read_annotations(collections)

    def __bool__(self) -> bool:
        return bool(self._known)

    @property
    def several(self) -> int:
        """Number of further captions that the sources gave."""
        return sum(len(told) for told, _ in self._known.values())

    def splits(self) -> dict[int, str]:
        """The split of a duplicate cluster, by the position of its first member, where its source says one.

        A cluster with a held-out member is held out: no training picture has a near-twin there. Members that no
        filter took count, dropped copies too.
        """
        if not self._known:
            return {}
        scores, found = self._decision.scores, dict[int, str]()
        at = self._decision.at
        firsts = self._decision.firsts(at).tolist()
        for source, row, first in zip(scores.sources[at].tolist(), scores.rows[at].tolist(), firsts, strict=True):
            _, split = self._known.get((source, row), ([], None))
            if split == HOLDOUT or (split is not None and first not in found):
                found[first] = split
        return found

    def alternatives(self, at: Ints) -> list[list[str]]:
        """For the samples at these positions: their further captions, clean, those left out that the recipe's rules
        on captions would drop."""
        scores, rules, found = self._decision.scores, self._decision.rules, []
        for source, row in zip(scores.sources[at].tolist(), scores.rows[at].tolist(), strict=True):
            told, _ = self._known.get((source, row), ([], None))
            found.append([kept for caption in told if (kept := _kept(caption, rules))])
        return found


def _kept(caption: str, rules: Prepare) -> str:
    """The caption as it is used, empty where a rule of :mod:`components.data.filtering` on captions takes it."""
    clean = clean_caption(caption)
    if not clean or len(clean) > rules.max_caption_chars:
        return ""
    found = measure(clean)
    blocked = listed(rules.blocked_words)
    if (
        found.words < rules.min_caption_words
        or found.repetition > rules.max_repetition
        or (rules.languages and found.language is not None and found.language not in rules.languages)
        or (rules.personal_data == "drop" and found.personal)
        or (blocked is not None and blocked.search(clean))
    ):
        return ""
    return redact(clean) if found.personal and rules.personal_data == "redact" else clean
