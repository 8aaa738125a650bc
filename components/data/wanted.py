"""What is to be collected: a list of URLs and captions, and what decides the identity of its collection."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from components.contracts.recipe import Collect
from components.data.annotations import annotations_digest

_SOURCE_FIELDS = {
    "urls", "files", "layout", "crop", "world", "parquet", "parquet_port", "url_column", "caption_column", "allow_hosts"
}  # fmt: skip
# how hard and under which name a site is asked changes nothing of what it answers, as far as anyone can say
_CIRCUMSTANCE_FIELDS = {"contact", "per_host", "crawl_delay_s", "min_collected"}


@dataclass(frozen=True)
class Wanted:
    """A list, and how its rows may be had.

    Args:
        urls: columns ``url`` and ``caption``, as :func:`components.data.lists.read_list` gives them, and those of
            :mod:`components.data.annotations`, where the source has them.
        allow_hosts: ``host:port`` pairs that may be of a private address.
        files: root of the files that the URLs name, where they are files.
    """

    urls: pa.Table
    allow_hosts: tuple[str, ...]
    files: str | None

    def config(self, limits: Collect) -> dict[str, Any]:
        """What decides the identity of the collection of this list."""
        left_out = _SOURCE_FIELDS | _CIRCUMSTANCE_FIELDS
        if limits.jpeg_subsampling == "4:4:4":  # as every collection was made before there was a choice
            left_out = left_out | {"jpeg_subsampling"}
        manners = {k: v for k, v in limits.identity().items() if k not in left_out}
        return {**manners, "allow_hosts": list(self.allow_hosts), "list": list_digest(self.urls)}


def list_digest(urls: pa.Table) -> str:
    """SHA-256 (hex) of the list's URLs and captions in order, whatever file they came from; of files' bytes too."""
    sha = hashlib.sha256((urls.schema.metadata or {}).get(b"content", b""))  # see sources.Source
    for url, caption in zip(urls["url"].to_pylist(), urls["caption"].to_pylist(), strict=True):
        for text in (url, caption):
            data = b"" if text is None else text.encode()
            sha.update(f"{-1 if text is None else len(data)}:".encode() + data)
    sha.update(annotations_digest(urls))
    return sha.hexdigest()
