"""Prompts that were erased from the logbook leave the drift artifacts too."""

from __future__ import annotations

import io
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.runtime.storage import Store

_PROMPTS = "prompts.parquet"


def forget_prompts(store: Store, erased: Collection[str]) -> int:
    """Take the prompts of erased requests out of every drift artifact.

    What was measured of them (lengths, rarities) stays, and so do counts of unknown words in ``drift.json``.

    Args:
        erased: ids of the requests.

    Returns:
        How many prompts were taken out.

    Raises:
        RuntimeUnavailable: another process is changing such an artifact.
    """
    if not erased:
        return 0
    named, count = pa.array(sorted(erased), pa.string()), 0
    for artifact in store.list("drift"):
        if _PROMPTS not in artifact.manifest.files:
            continue
        table = pq.read_table(artifact.path(_PROMPTS), partitioning=None)
        gone = pc.and_(pc.is_valid(table["prompt"]), pc.is_in(table["request_id"], named))
        if not (here := int(pc.sum(gone).as_py() or 0)):
            continue
        for name in ("prompt", "unknown_words"):
            if name in table.column_names:
                place, kind = table.column_names.index(name), table[name].type
                left = [
                    None if out else value for out, value in zip(gone.to_pylist(), table[name].to_pylist(), strict=True)
                ]
                table = table.set_column(place, name, pa.array(left, kind))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        store.revise(artifact, {_PROMPTS: buffer.getvalue()}, note={"prompts of erased requests": here})
        count += here
    return count
