"""From artifacts to what was made of them."""

from __future__ import annotations

from pathlib import Path

from components.runtime.lineage import ancestors, descendants, digests
from components.runtime.storage import Artifact, Outcome, Store


def make(store: Store, kind: str, **inputs: Artifact) -> Artifact:
    draft = store.draft(kind, inputs, {"n": len(store.list())})
    (draft.dir / "x").write_text(f"{kind} {len(store.list())}")
    return draft.commit(Outcome())


def test_children_of_children_also_by_earlier_digests(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    data = make(store, "dataset")
    model = make(store, "model", dataset=data)
    revised = store.revise(data, {"x": b"less"}, note={})
    later = make(store, "model", dataset=revised)
    child = make(store, "model", start=model)
    assessment = make(store, "assessment", model=model)
    stranger = make(store, "model", dataset=make(store, "dataset"), measured=assessment)
    found = descendants(store.list(), [revised], frozenset({"model"}))
    assert {a.digest for a in found} == {model.digest, later.digest, child.digest}
    assert stranger.digest not in {a.digest for a in found}
    assert {a.digest for a in descendants(store.list(), [later], frozenset({"model"}))} == set()
    assert digests(revised) == (revised.digest, data.digest)
    assert {a.manifest.kind for a in descendants(store.list(), [revised], frozenset({"model", "assessment"}))} == {
        "model", "assessment"
    }  # fmt: skip


def test_back_to_the_sources_each_once(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    list_ = make(store, "collection")
    data = make(store, "dataset", collection=list_)
    clip = make(store, "text_encoder", dataset=data)
    model = make(store, "model", dataset=data, text_encoder=clip)
    make(store, "model", dataset=make(store, "dataset"))
    found = ancestors(store.list(), model)
    assert list(found) == [model.url, data.url, clip.url, list_.url]
    assert [(role, a.digest) for role, a in found[model.url]] == [
        ("dataset", data.digest),
        ("text_encoder", clip.digest),
    ]
    store.revise(list_, {"x": b"less"}, note={})
    assert [role for role, _ in ancestors(store.list(), data)[data.url]] == ["collection"], "also by earlier digests"
