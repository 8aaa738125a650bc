"""The store: whole or absent, checked, resumable, on any fsspec URL."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.errors import ArtifactError, StoreFullError
from components.contracts.manifest import FileRecord, digest_of, identity_of
from components.runtime.storage import Artifact, Outcome, Store, full_store_explained, write_bytes


def make(store: Store, kind: str = "thing", text: bytes = b"hello", **config: object) -> Artifact:
    draft = store.draft(kind, {}, config)
    (draft.dir / "a").mkdir(exist_ok=True)
    (draft.dir / "a" / "x.bin").write_bytes(text)
    (draft.state / "progress").write_text("half")
    return draft.commit(Outcome(counts={"files": 1}))


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}")
    return Store(str(tmp_path / "store"))


def test_round_trip(store: Store) -> None:
    made = make(store, size=3)
    found = store.find("thing", made.manifest.identity)
    assert found is not None and found.manifest == made.manifest
    assert found.path("a/x.bin").read_bytes() == b"hello"
    assert list(found.manifest.files) == ["a/x.bin"]  # the resume state is gone
    assert [a.digest for a in store.list()] == [made.digest]
    assert store.by_digest("thing", made.digest[:10]).digest == made.digest
    found.verify()
    assert pickle.loads(pickle.dumps(found)) == found


def test_no_manifest_no_data(store: Store) -> None:
    draft = store.draft("thing", {}, {})
    (draft.dir / "x").write_bytes(b"1")
    assert store.find("thing", draft.identity) is None
    assert store.list() == []


def test_unknown_file_and_digest(store: Store) -> None:
    made = make(store)
    with pytest.raises(ArtifactError, match="holds no file"):
        made.path("nothing")
    with pytest.raises(ArtifactError, match="0 artifacts"):
        store.by_digest("thing", "ffff")


def test_damage_is_named(tmp_path: Path) -> None:
    made = make(Store(str(tmp_path)))
    victim = made.path("a/x.bin")
    victim.write_bytes(b"hellO")
    with pytest.raises(ArtifactError, match=r"'a/x\.bin'.*damaged.*Remedy"):
        made.verify()
    victim.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        made.verify()


def test_damaged_manifest(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = make(store)
    (Path(made.url) / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        store.find("thing", made.manifest.identity)


def test_leftovers_of_a_killed_writer_are_not_part_of_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    draft = store.draft("thing", {}, {})
    (draft.dir / ".tmp-abc").write_bytes(b"half")
    assert list(draft.commit(Outcome()).manifest.files) == []


def test_full_store_from_any_depth() -> None:
    class Wrapped(Exception):
        cause = OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreFullError, match="No room"), full_store_explained("there"):
        raise Wrapped()
    with pytest.raises(ValueError, match="other"), full_store_explained("there"):
        raise ValueError("other")


def test_store_without_room(tmp_path: Path) -> None:
    """A real file system of 1 MiB, where this user may mount one."""
    room = tmp_path / "room"
    room.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", room], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        store = Store(str(room / "store"))
        kept = make(store)
        draft = store.draft("big", {}, {})
        with pytest.raises(StoreFullError, match="Remedy"):
            write_bytes(f"{draft.url}/big.bin", bytes(3_000_000))
        kept.verify()
        assert not any(p.name.startswith(".tmp-") for p in draft.dir.iterdir())
        assert [a.digest for a in store.list()] == [kept.digest]
    finally:
        subprocess.run(["umount", room], check=True)


def test_unwritable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        Store(str(tmp_path / "file")).draft("thing", {}, {})


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=5))
def test_identity_does_not_depend_on_key_order(config: dict[str, object]) -> None:
    backwards = dict(reversed(config.items()))
    assert identity_of("k", {}, config) == identity_of("k", {}, backwards)
    assert identity_of("k", {}, config) != identity_of("other", {}, config)


def test_digest_is_of_names_and_bytes() -> None:
    record, other = FileRecord(size=1, sha256="aa"), FileRecord(size=1, sha256="bb")
    assert digest_of("k", {"a": record}) != digest_of("k", {"b": record}) != digest_of("k", {"b": other})


def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """SIGKILL while the same file is rewritten for ever: what is read is always one whole version."""
    target = tmp_path / "f"
    code = (
        "import sys; from components.runtime.storage import write_bytes\n"
        "i = 0\nwhile True:\n    i = (i + 1) % 256; write_bytes(sys.argv[1], bytes([i]) * 200_000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)])
    deadline = time.monotonic() + 300
    try:
        while not target.exists():
            assert time.monotonic() < deadline, "the writer never wrote"
            time.sleep(0.01)
        for _ in range(50):
            data = target.read_bytes()
            assert len(data) == 200_000 and len(set(data)) == 1
    finally:
        os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    data = target.read_bytes()
    assert len(data) == 200_000 and len(set(data)) == 1
