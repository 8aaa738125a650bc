"""Pictures read from files below one root, and nothing else."""

from __future__ import annotations

import hashlib
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data.folders import read_folder
from components.data.guard import Refusal
from components.data.reading import FileReader
from tests.components.data.test_folders import SAMPLES, fill, write_tar


def refusal_of(reader: FileReader, url: str) -> CollectReason:
    with pytest.raises(Refusal) as refusal:
        reader.fetch(url)
    assert refusal.value.attempts == 1
    return refusal.value.reason


def test_what_is_listed_is_read(tmp_path: Path) -> None:
    names = ["plain.jpg", "odd #1?% ä.png", "sub/x.gif"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    reader = FileReader(Collect(), str(tmp_path))
    answers = [reader.fetch(url) for url in read_folder(str(tmp_path))["url"].to_pylist()]
    assert sorted(a.body.decode() for a in answers) == sorted(names)
    first = answers[0]
    assert (first.http_status, first.attempts, first.opt_out, first.fetch) == (None, 1, None, None)
    assert first.sha256 == hashlib.sha256(first.body).hexdigest()


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
@pytest.mark.parametrize("alone", [False, True])
def test_tars_are_read_in_place_by_many_threads(tmp_path: Path, name: str, alone: bool) -> None:
    path = write_tar(tmp_path / name, SAMPLES, "w:gz" if name.endswith("gz") else "w")
    root = str(path if alone else tmp_path)
    reader = FileReader(Collect(), root)
    urls = read_folder(root)["url"].to_pylist()
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda url: reader.fetch(url).body, urls * 20))
    assert bodies == [b"p0", b"p1", b"p2", b"p3"] * 20
    reader.close()
    assert reader.fetch(urls[0]).body == b"p0"
    if alone:
        fill(tmp_path, a_dot_jpg="x")
        assert refusal_of(reader, f"file://{tmp_path}/a.jpg") is CollectReason.REFUSED_SCHEME


def test_more_tars_than_are_kept_open(tmp_path: Path) -> None:
    for i in range(9):
        write_tar(tmp_path / f"{i}.tar", [("k.jpg", b"%d" % i)])
    reader = FileReader(Collect(), str(tmp_path))
    urls = read_folder(str(tmp_path))["url"].to_pylist()
    with ThreadPoolExecutor(6) as pool:
        assert b"".join(pool.map(lambda url: reader.fetch(url).body, urls * 5)) == b"012345678" * 5


@pytest.mark.parametrize("ending", ["/../secret.jpg", "//etc/passwd", "/a/../../secret.jpg", "/%2e%2e/secret.jpg",
                                    "/a%00.jpg", "x/secret.jpg", ""])  # fmt: skip
def test_nothing_outside_of_the_root_is_read(tmp_path: Path, ending: str) -> None:
    fill(tmp_path, secret_dot_jpg="s", set__a_dot_jpg="x", setx__secret_dot_jpg="s")
    reader = FileReader(Collect(), str(tmp_path / "set"))
    assert refusal_of(reader, f"file://{tmp_path}/set{ending}") is CollectReason.REFUSED_SCHEME


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.jpg", "memory://set/a.jpg", "/etc/passwd", "data:,x", ""])
def test_other_places_are_refused(tmp_path: Path, url: str) -> None:
    assert refusal_of(FileReader(Collect(), str(tmp_path)), url) is CollectReason.REFUSED_SCHEME


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, secret_dot_jpg="s", set__a_dot_jpg="inside")
    folder = tmp_path / "set"
    (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "in.jpg").symlink_to(folder / "a.jpg")
    (folder / "nothing.jpg").symlink_to(folder / "gone.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    reader, base = FileReader(Collect(), str(folder)), f"file://{folder}"
    assert reader.fetch(f"{base}/in.jpg").body == b"inside"
    for name in ("out.jpg", "pipe.jpg", "folder.jpg"):
        assert refusal_of(reader, f"{base}/{name}") is CollectReason.REFUSED_SCHEME, name
    for name in ("nothing.jpg", "never.jpg", "a.jpg/b.jpg"):
        assert refusal_of(reader, f"{base}/{name}") is CollectReason.MISSING_FILE, name


def test_members_that_are_links_or_lead_out_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("../up.jpg", b"x"), ("/abs.jpg", b"x")])
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    reader = FileReader(Collect(), str(tmp_path))
    urls = read_folder(str(tmp_path))["url"].to_pylist()
    assert len(urls) == 5
    assert {refusal_of(reader, url) for url in urls} == {CollectReason.REFUSED_SCHEME}
    assert refusal_of(reader, f"file://{path}#none.jpg") is CollectReason.MISSING_FILE


def test_bytes_are_capped(tmp_path: Path) -> None:
    fill(tmp_path, fits_dot_jpg="x" * 100, large_dot_jpg="x" * 101)
    write_tar(tmp_path / "s.tar", [("fits.jpg", b"x" * 100), ("large.jpg", b"x" * 101)])
    write_tar(tmp_path / "z.tar.gz", [("a.jpg", bytes(200 << 20))], "w:gz")
    reader, base = FileReader(Collect(max_bytes=100), str(tmp_path)), f"file://{tmp_path}"
    for name in ("fits.jpg", "s.tar#fits.jpg"):
        assert len(reader.fetch(f"{base}/{name}").body) == 100
    for name in ("large.jpg", "s.tar#large.jpg", "z.tar.gz#a.jpg"):
        assert refusal_of(reader, f"{base}/{name}") is CollectReason.TOO_MANY_BYTES, name


def test_a_tar_that_ends_early_is_truncated_there(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "s.tar", [("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600)]).read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: 512 * 4 + 100])
    (tmp_path / "none.tar").write_bytes(bytes(10240))
    reader = FileReader(Collect(), str(tmp_path))
    fates = {}
    for url in read_folder(str(tmp_path))["url"].to_pylist():
        try:
            fates[url.rpartition("/")[2]] = str(len(reader.fetch(url).body))
        except Refusal as refusal:
            fates[url.rpartition("/")[2]] = str(refusal.reason)
    assert fates == {
        "none.tar": "not_an_image", "s.tar#a.jpg": "600", "s.tar#b.jpg": "truncated", "s.tar": "truncated"
    }  # fmt: skip


def test_any_fsspec_filesystem_is_read() -> None:
    with fsspec.open("memory://reading/set/a%20b.jpg", "wb") as file:
        file.write(b"percent")
    reader = FileReader(Collect(), "memory://reading/set")
    (url,) = read_folder("memory://reading/set")["url"].to_pylist()
    assert reader.fetch(url).body == b"percent"
    assert refusal_of(reader, "memory:///reading/other.jpg") is CollectReason.REFUSED_SCHEME
    assert refusal_of(reader, "memory:///reading/set/none.jpg") is CollectReason.MISSING_FILE
