"""The manifest: what is in its digests, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from components.contracts.manifest import CIRCUMSTANCE, FileRecord, Manifest, canonical_json, digest_of

NAMES = st.text("abc/.", min_size=1, max_size=8)
RECORDS = st.builds(FileRecord, size=st.integers(0, 9), sha256=st.text("0123", min_size=1, max_size=4))


@given(st.dictionaries(NAMES, RECORDS, max_size=5), st.dictionaries(NAMES, RECORDS, max_size=3))
def test_circumstance_is_not_in_the_digest(files: dict[str, FileRecord], beside: dict[str, FileRecord]) -> None:
    more = files | {f"{CIRCUMSTANCE}{name}": record for name, record in beside.items()}
    assert digest_of("k", more) == digest_of("k", files) == digest_of("k", dict(reversed(more.items())))
    if files:
        name = min(files)
        other = files | {name: FileRecord(size=0, sha256=files[name].sha256 + "0")}
        assert digest_of("k", other) != digest_of("k", files)


def test_a_manifest_from_before_revisions_is_read() -> None:
    text = canonical_json({"kind": "k", "identity": "a", "digest": "b", "inputs": {}, "config": {}, "files": {},
                           "created_at": "2026-01-01T00:00:00+00:00"})  # fmt: skip
    manifest = Manifest.model_validate_json(text)
    assert manifest.earlier == () and manifest.revisions == ()
    note = {"at": "2026-01-02", "from": "b", "by": "takedown", "removed": {"train": 1}}
    revised = manifest.model_copy(update={"earlier": ("b",), "revisions": (note,)})
    assert Manifest.model_validate_json(revised.model_dump_json()) == revised


def test_unknown_fields_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        Manifest.model_validate({"surprise": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})
