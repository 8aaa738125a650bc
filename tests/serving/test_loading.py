"""Local copies of models in a remote store: taken warm, checked, fetched anew when damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from components.contracts.errors import ArtifactError
from components.runtime.storage import Artifact, Outcome, Store
from serving.loading import local_copy


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifact]:
    """A model in a store that is not of this machine's disk, and an empty cache."""
    monkeypatch.setenv("ATELIER_CACHE", str(tmp_path / "cache"))
    draft = Store("memory://warm/store").draft("model", {}, {"name": tmp_path.name})
    (draft.dir / "weights.safetensors").write_text("weights")
    yield draft.commit(Outcome())
    fsspec.filesystem("memory").rm("/warm", recursive=True)


def test_the_second_start_is_warm_even_without_the_store(remote: Artifact) -> None:
    first = local_copy(remote.url, remote.digest)
    assert first.path("weights.safetensors").read_text() == "weights" and "cache" in first.url
    files = fsspec.filesystem("memory")
    files.mv("/warm/store", "/warm/away", recursive=True)
    try:
        again = local_copy(remote.url, remote.digest)
        assert again.url == first.url and again.digest == remote.digest
        with pytest.raises(ArtifactError, match="cannot be read"):
            local_copy(remote.url, "0" * 64)
    finally:
        files.mv("/warm/away", "/warm/store", recursive=True)


@pytest.mark.parametrize("damage", ["byte", "manifest", "missing"])
def test_a_damaged_copy_is_fetched_anew(remote: Artifact, damage: str) -> None:
    copy = Path(local_copy(remote.url, remote.digest).url)
    if damage == "byte":
        (copy / "weights.safetensors").write_text("wEights")
    elif damage == "manifest":
        (copy / "manifest.json").write_text("{")
    else:
        (copy / "weights.safetensors").unlink()
    again = local_copy(remote.url, remote.digest)
    assert again.path("weights.safetensors").read_text() == "weights"


def test_a_store_that_holds_another_model_or_a_damaged_one_is_refused(remote: Artifact) -> None:
    with pytest.raises(ArtifactError, match="another artifact"):
        local_copy(remote.url, "0" * 64)
    fsspec.filesystem("memory").pipe_file(
        "/" + remote.url.removeprefix("memory://").lstrip("/") + "/weights.safetensors", b"wrongly"
    )
    with pytest.raises(ArtifactError, match="damaged"):
        local_copy(remote.url, remote.digest)
