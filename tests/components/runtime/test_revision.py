"""Revising a finished artifact: the old one or the new one, whole, whenever the process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock

from components.contracts.errors import RuntimeUnavailable
from components.contracts.manifest import MANIFEST_NAME
from components.runtime import revision
from components.runtime.storage import Artifact, Outcome, Store

FILES = {"a/kept.bin": b"kept", "a/changed.bin": b"before", "gone.bin": b"gone", "circumstance/when.txt": b"1"}
AFTER = {"a/kept.bin": b"kept", "a/changed.bin": b"after", "circumstance/when.txt": b"1", "b/new.bin": b"new"}


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}")
    return Store(str(tmp_path / "store"))


def make(store: Store, **config: object) -> Artifact:
    draft = store.draft("thing", {}, config)
    for name, data in FILES.items():
        (draft.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (draft.dir / name).write_bytes(data)
    return draft.commit(Outcome(counts={"files": 4}, dropped={"x": 1}, evidence={"e": 1}))


def change(store: Store, artifact: Artifact, source: Path) -> Artifact:
    source.write_bytes(b"new")
    files = {"a/changed.bin": b"after", "gone.bin": None, "b/new.bin": source, "a/kept.bin": b"kept"}
    return store.revise(artifact, files, counts={"files": 3}, note={"by": "test"})


def content(artifact: Artifact) -> dict[str, bytes]:
    """Everything that lies in the artifact's folder, but its manifest."""
    fs, path = fsspec.core.url_to_fs(artifact.url)
    found = {name[len(path) :].lstrip("/"): fs.cat_file(name) for name in fs.find(path)}
    assert found.pop(MANIFEST_NAME)
    return found


def test_revised(store: Store, tmp_path: Path) -> None:
    old = make(store)
    local = old.local()
    new = change(store, old, tmp_path / "source")
    assert new.manifest.identity == old.manifest.identity and new.digest != old.digest
    assert new.manifest.earlier == (old.digest,)
    assert [{**n, "at": ""} for n in new.manifest.revisions] == [{"at": "", "from": old.digest, "by": "test"}]
    assert new.manifest.counts == {"files": 3} and new.manifest.dropped == {"x": 1}
    assert new.manifest.evidence == {"e": 1} and new.manifest.created_at == old.manifest.created_at
    assert content(new) == AFTER
    assert store.find("thing", old.manifest.identity) == new
    assert store.by_digest("thing", old.digest[:12]) == new == store.by_digest("thing", new.digest[:12])
    new.verify()
    assert new.path("a/changed.bin").read_bytes() == b"after"
    if str(local) != old.url:
        assert not local.exists()  # the copy of what it was is gone from this machine


def test_revised_again_and_back(store: Store, tmp_path: Path) -> None:
    old = make(store)
    new = change(store, old, tmp_path / "source")
    back = store.revise(new, {"a/changed.bin": b"before", "gone.bin": b"gone", "b/new.bin": None}, note={"n": 2})
    assert back.digest == old.digest and back.manifest.earlier == (new.digest,)
    assert len(back.manifest.revisions) == 2
    assert store.by_digest("thing", old.digest) == store.by_digest("thing", new.digest) == back


def test_circumstance_keeps_the_digest(store: Store) -> None:
    old = make(store)
    new = store.revise(old, {"circumstance/when.txt": b"2"}, note={})
    assert new.digest == old.digest and new.manifest.earlier == () and len(new.manifest.revisions) == 1
    new.verify()


def test_nothing_to_change(store: Store) -> None:
    old = make(store)
    assert store.revise(old, {"a/changed.bin": b"before", "none": None}, counts={"files": 4}, note={}) == old
    assert content(old) == FILES


def test_changed_by_another_meanwhile(store: Store) -> None:
    old = make(store)
    new = store.revise(old, {"a/changed.bin": b"first"}, note={})
    with pytest.raises(RuntimeUnavailable, match="another process"):
        store.revise(old, {"a/changed.bin": b"second"}, note={})
    assert store.list("thing") == [new]


def test_another_process_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "store"))
    old = make(store)
    monkeypatch.setattr(revision, "_WAIT_S", 0.05)
    lock = tmp_path / "store" / "locks" / f"thing-{old.manifest.identity[:16]}.lock"
    lock.parent.mkdir()
    staged = Path(old.url) / "_revision" / "files" / "x"
    staged.parent.mkdir(parents=True)
    staged.write_text("half")
    with FileLock(lock):
        with pytest.raises(RuntimeUnavailable, match="changing thing"):
            store.revise(old, {"gone.bin": None}, note={})
        assert store.find("thing", old.manifest.identity) == old  # readers need not wait for what is not decided
        assert staged.exists()
    assert store.find("thing", old.manifest.identity) == old
    assert not staged.exists()  # discarded, now that nobody is at it


def test_killed_at_every_point(tmp_path: Path) -> None:
    """SIGKILL before the n-th change of the disk, for every n: what is read next is the old or the new artifact."""
    seen = set()
    for n in range(1, 200):
        store = Store(str(tmp_path / str(n) / "store"))
        old = make(store)
        child = _forked(lambda store=store, old=old, n=n: _die_at(n, store, old, tmp_path / str(n) / "source"))  # type: ignore[misc]
        found = store.find("thing", old.manifest.identity)
        assert found is not None
        found.verify()
        assert content(found) == (FILES if found.digest == old.digest else AFTER)
        seen.add(found.digest == old.digest)
        if child == 0:
            break
        assert child == -signal.SIGKILL
        assert content(change(store, found, tmp_path / str(n) / "source")) == AFTER  # the same call does the rest
    else:
        pytest.fail("the revision never came to its end")
    assert n > 15 and seen == {True, False}


def test_failed_at_every_point_in_a_remote_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where files are put and copied, not moved: every call that changes the store fails in turn."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    left, ended = [0], False

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    seen, n = set(), 0
    while not ended:
        n += 1
        store = Store(f"memory://{uuid.uuid4().hex}")
        old = make(store)
        with monkeypatch.context() as patched:
            for name in ("pipe_file", "put_file", "cp_file", "rm_file", "rm"):
                patched.setattr(fs, name, failing(getattr(fs, name)))
            left[0] = n
            try:
                change(store, old, tmp_path / "source")
                ended = True
            except KeyboardInterrupt:
                pass
        found = store.find("thing", old.manifest.identity)
        assert found is not None
        found.verify()
        assert content(found) == (FILES if found.digest == old.digest else AFTER)
        seen.add(found.digest == old.digest)
    assert n > 8 and seen == {True, False}


def test_completed_by_the_first_of_many_readers(tmp_path: Path) -> None:
    """A decided revision, and four processes that read the artifact at once: all see the new one."""
    store = Store(str(tmp_path / "store"))
    old = make(store)
    for n in range(1, 200):  # the first point after the decision
        if _forked(lambda n=n: _die_at(n, store, old, tmp_path / "source")) == 0:  # type: ignore[misc]
            pytest.fail("no kill left a plan behind")
        if (Path(old.url) / "_revision" / "plan.json").exists():
            break
    code = (
        "import sys; from components.runtime.storage import Store\n"
        "a = Store(sys.argv[1]).find('thing', sys.argv[2]); a.verify(); print(a.digest)"
    )
    command = [sys.executable, "-c", code, store.url, old.manifest.identity]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = {reader.communicate(timeout=300)[0].strip() for reader in readers}
    assert [reader.returncode for reader in readers] == [0] * 4
    assert len(found) == 1 and old.digest not in found
    assert json.loads((Path(old.url) / MANIFEST_NAME).read_text())["digest"] in found
    assert not (Path(old.url) / "_revision").exists()


def _forked(work: Callable[[], object]) -> int:
    """Run ``work`` in a child of this process: 0 when it came to its end, else minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(n: int, store: Store, old: Artifact, source: Path) -> None:
    """Revise, and die by SIGKILL before the n-th call that changes the store's disk."""
    left = n

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")) and store.url in str(
            args[0]
        ):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    change(store, old, source)
