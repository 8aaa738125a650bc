"""Where a recipe's rows come from, and when a source of files counts as another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import fsspec
import pytest

from components.contracts.errors import RecipeError
from components.contracts.recipe import Collect, Recipe, Run
from components.data import fingerprint, sources
from components.data.wanted import list_digest
from tests.components.data.test_folders import SAMPLES, fill, write_tar


def digest(tmp_path: Path, files: str) -> str:
    recipe = Recipe(name="mine", collect=Collect(files=files), run=Run(root=str(tmp_path / "runs")))
    with sources.opened(recipe) as source:
        assert source.files == files and source.allow_hosts == ()
        return list_digest(source.urls)


def age(folder: Path) -> None:
    """Let every file be an hour old, so that notes about it are trusted."""
    for file in folder.rglob("*"):
        os.utime(file, (file.stat().st_mtime - 3600,) * 2)


def test_a_changed_file_makes_another_list_and_a_touched_one_does_not(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", a_dot_jpg="one", b_dot_png="two", notes_dot_md="x")
    write_tar(folder / "s.tar", SAMPLES)
    age(folder)
    first = digest(tmp_path, str(folder))
    assert digest(tmp_path, str(folder)) == first
    (folder / "a.jpg").touch()
    (folder / "notes.md").write_text("y")
    assert digest(tmp_path, str(folder)) == first
    (folder / "a.jpg").write_bytes(b"ONE")  # of the same length, within the clock's grain
    second = digest(tmp_path, str(folder))
    (folder / "s.tar").write_bytes((folder / "s.tar").read_bytes().replace(b"p0", b"q0"))
    third = digest(tmp_path, str(folder))
    (folder / "a.txt").write_text("a caption")
    fourth = digest(tmp_path, str(folder))
    assert len({first, second, third, fourth}) == 4


def test_files_are_read_once_and_notes_may_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "set", a_dot_jpg="one", b_dot_png="two")
    age(folder)
    notes, read = tmp_path / "runs" / "notes.parquet", list[object]()
    real = fingerprint._read
    monkeypatch.setattr(fingerprint, "_read", lambda file: read.append(file) or real(file))
    first = fingerprint.content_digest(str(folder), notes)
    assert len(read) == 2 and fingerprint.content_digest(str(folder), notes) == first and len(read) == 2
    notes.write_bytes(b"damaged")
    assert fingerprint.content_digest(str(folder), notes) == first and len(read) == 4
    assert os.listdir(notes.parent) == ["notes.parquet"]
    shutil.rmtree(notes.parent)
    notes.parent.write_text("a file where the folder should be")
    assert fingerprint.content_digest(str(folder), notes) == first and len(read) == 6


def test_what_lies_outside_is_not_read_for_the_digest(tmp_path: Path) -> None:
    fill(tmp_path, secret_dot_jpg="s", set__a_dot_jpg="x")
    folder, secret = tmp_path / "set", tmp_path / "secret.jpg"
    (folder / "out.jpg").symlink_to(secret)
    (folder / "nothing.jpg").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe.jpg")
    first = fingerprint.content_digest(str(folder), tmp_path / "notes")
    secret.write_bytes(b"another")
    assert fingerprint.content_digest(str(folder), tmp_path / "notes") == first


def test_other_filesystems_are_read_too(tmp_path: Path) -> None:
    found = set()
    for data in (b"one", b"two", b"two"):
        with fsspec.open("memory://sources/set/a.jpg", "wb") as file:
            file.write(data)
        found.add(fingerprint.content_digest("memory://sources/set", tmp_path / "notes"))
    assert len(found) == 2 and not (tmp_path / "notes").exists()


def test_a_list_is_read_and_no_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("http://a.example/1.jpg a star\n")
    with sources.opened(Recipe(name="mine", collect=Collect(urls=str(tmp_path / "l.txt")))) as source:
        assert source.files is None and source.urls.to_pylist() == [
            {"url": "http://a.example/1.jpg", "caption": "a star"}
        ]
    with pytest.raises(RecipeError, match=r"collect\.files"), sources.opened(Recipe(name="mine")):
        pass
