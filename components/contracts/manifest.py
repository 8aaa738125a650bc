"""What an artifact says about itself: ``manifest.json``, written last.

Two digests, both SHA-256 over canonical JSON (sorted keys, no spaces):

* ``identity``: kind, schema version, the *digests* of the inputs and the resolved config. It is the
  address of the artifact in the store and is known before any work is done.
* ``digest``: kind, schema version and the checksum of every file. It says what is inside, and is what
  later stages name as their input, so work done again that yields the same bytes changes nothing after it.

Where the work ran (host, workers, seconds) is kept under ``circumstance`` and is in neither digest; nor are
files below ``circumstance/``, which are checksummed like all others.

A finished artifact may be revised (a takedown, a retry of what failed): its files and its digest change, its
identity does not. ``earlier`` keeps the digests that other manifests may name it by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 2
CIRCUMSTANCE = "circumstance/"  # files that another run of the same work may find otherwise


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 (hex) of one file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class Manifest(BaseModel):
    """The record of one artifact. ``dropped`` counts what was left out, by reason; ``counts`` what is in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    schema_version: int = SCHEMA_VERSION
    identity: str
    digest: str
    inputs: dict[str, str]
    config: dict[str, Any]
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    evidence: dict[str, Any] = {}
    files: dict[str, FileRecord]
    created_at: str
    circumstance: dict[str, Any] = {}
    earlier: tuple[str, ...] = ()  # digests that it had before it was revised, oldest first
    revisions: tuple[dict[str, Any], ...] = ()  # one note a revision: "at" (UTC), "from" (digest), "by" ...


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values: keys sorted, no spaces, NaN refused (``ValueError``)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """SHA-256 (hex) of the UTF-8 bytes of ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(kind: str, inputs: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """Address of an artifact, from what it is made of. ``inputs`` maps a role to the input's digest."""
    return sha256_text(
        canonical_json({"kind": kind, "schema": SCHEMA_VERSION, "inputs": dict(inputs), "config": dict(config)})
    )


def digest_of(kind: str, files: Mapping[str, FileRecord]) -> str:
    """Digest of the content of an artifact: every file's name and checksum, circumstance left out."""
    content = {name: record.sha256 for name, record in files.items() if not name.startswith(CIRCUMSTANCE)}
    return sha256_text(canonical_json({"kind": kind, "schema": SCHEMA_VERSION, "files": content}))
