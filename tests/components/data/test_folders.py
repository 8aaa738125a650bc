"""Folders of pictures and webdataset tars, as lists."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import InputError
from components.data import tars
from components.data.folders import read_folder


def fill(root: Path, **files: str | bytes) -> Path:
    """Files by path, ``__`` for ``/`` and ``_dot_`` for ``.``."""
    for name, data in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def found(path: Path | str, caption_column: str = "caption") -> dict[str, str]:
    table = read_folder(str(path), caption_column)
    base = f"file://{path}/" if isinstance(path, Path) else path.replace("memory://", "memory:///") + "/"
    return {row["url"].removeprefix(base): row["caption"] for row in table.to_pylist()}


def test_sidecars_give_the_captions(tmp_path: Path) -> None:
    fill(
        tmp_path, a_dot_jpg="x", a_dot_txt="\ufeffa red\r\nstar \n", b_dot_PNG="x", b_dot_caption="a caption",
        c_dot_webp="x", c_dot_txt="txt", c_dot_caption="not this", deep__er__d_dot_jpeg="x",
        deep__er__d_dot_txt="below",
        bare_dot_gif="x", notes_dot_txt="of no picture", _dot_hidden_dot_jpg="x", _dot_git__e_dot_jpg="x",
    )  # fmt: skip
    assert found(tmp_path) == {
        "a.jpg": "a red star", "b.PNG": "a caption", "c.webp": "txt", "deep/er/d.jpeg": "below", "bare.gif": "",
    }  # fmt: skip
    assert list(found(tmp_path)) == sorted(found(tmp_path))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "captions.csv", "captions.jsonl"])
def test_tables_give_the_captions_the_nearest_first(tmp_path: Path, name: str) -> None:
    def table(rows: dict[str, str], column: str) -> str:
        if name.endswith("csv"):
            return f"file_name,{column}\n" + "".join(f'{file},"{text}"\n' for file, text in rows.items())
        return "".join(json.dumps({"file_name": file, column: text}) + "\n" for file, text in rows.items())

    fill(tmp_path, a_dot_jpg="x", sub__b_dot_jpg="x", sub__c_dot_jpg="x", sub__d_dot_jpg="x", sub__d_dot_txt="its own")
    (tmp_path / name).write_text(
        table({"a.jpg": "a, top", "./sub/b.jpg": "from above", "sub/c.jpg": "no", "gone.jpg": "gone"}, "text")
    )
    (tmp_path / "sub" / name).write_text(table({"c.jpg": "from beside", "d.jpg": "not this"}, "caption"))
    assert found(tmp_path) == {
        "a.jpg": "a, top", "sub/b.jpg": "from above", "sub/c.jpg": "from beside", "sub/d.jpg": "its own",
        "gone.jpg": "gone",
    }  # fmt: skip


def test_another_caption_column_is_taken_where_it_is_named(tmp_path: Path) -> None:
    fill(tmp_path, a_dot_jpg="x", metadata_dot_csv="file_name,text,long\na.jpg,short,a long one\n")
    assert found(tmp_path) == {"a.jpg": "short"}
    assert found(tmp_path, "long") == {"a.jpg": "a long one"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no pictures"),
        ({"a_dot_jpg": "x", "metadata_dot_csv": "name_of_it,text\na.jpg,b\n"}, "no column of file names"),
        (
            {"a_dot_jpg": "x", "metadata_dot_jsonl": '{"file_name": "a.jpg", "n": 1}'},
            r"no column of captions.*caption_col",
        ),
        ({"a_dot_jpg": "x", "metadata_dot_csv": "file_name,text\na.jpg,b,c\n"}, "line 2 has 3 fields"),
        ({"a_dot_jpg": "x", "metadata_dot_jsonl": "[[[["}, "line 1 is not JSON"),
        ({"a_dot_jpg": "x", "a_dot_txt": b"caf\xe9"}, r"a\.txt is not UTF-8"),
        ({"a_dot_jpg": "x", "a_dot_txt": "x" * 70_000}, r"a\.txt is too long"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_folder(str(fill(tmp_path, **files)))


def test_a_missing_folder_and_the_web_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_folder(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is on the web"):
        read_folder("http://a.example/pictures")
    with pytest.raises(InputError, match=r"collect\.files"):
        read_folder("gibberish://a/b")


def test_links_are_not_followed_out_of_the_folder_nor_in_circles(tmp_path: Path) -> None:
    secret = fill(tmp_path / "secret", s_dot_jpg="x", s_dot_txt="top secret") / "s.txt"
    folder = fill(tmp_path / "set", a_dot_jpg="x")
    (folder / "circle").symlink_to(folder, target_is_directory=True)
    (folder / "out").symlink_to(secret.parent, target_is_directory=True)
    assert found(folder) == {"a.jpg": ""}
    (folder / "a.txt").symlink_to(secret)
    with pytest.raises(InputError, match="leads out of"):
        read_folder(str(folder))
    (folder / "a.txt").unlink()
    (folder / "metadata.csv").symlink_to(secret)
    with pytest.raises(InputError, match="leads out of"):
        read_folder(str(folder))


def test_rows_that_lead_out_of_the_folder_are_listed_to_be_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", a_dot_jpg="x", metadata_dot_csv="file_name,text\n../b.jpg,up\n/etc/passwd,abs\n")
    assert found(folder) == {"../b.jpg": "up", "/etc/passwd": "", "a.jpg": ""}


def test_folders_of_any_fsspec_filesystem_are_read() -> None:
    files = {
        "a b.jpg": b"x",
        "a b.txt": b"one",
        "sub/c.png": b"x",
        "metadata.csv": b"file_name,caption\nsub/c.png,two\n",
    }
    for name, data in files.items():
        with fsspec.open(f"memory://folders/set/{name}", "wb") as file:
            file.write(data)
    assert found("memory://folders/set") == {"a%20b.jpg": "one", "sub/c.png": "two"}


SAMPLES = [
    ("d/000.jpg", b"p0"), ("d/000.txt", b"zero"), ("d/000.json", b'{"caption": "not this"}'),
    ("d/001.png", b"p1"), ("d/001.json", b'{"text": "one", "url": "http://a.example/"}'),
    ("d/001.seg.png", b"another picture of the sample"), ("d/002.caption", b"two"), ("d/002.webp", b"p2"),
    ("e/000.jpg", b"p3"), ("e/000.cls", b"7"),
]  # fmt: skip
EXPECTED = {"#d/000.jpg": "zero", "#d/001.png": "one", "#d/002.webp": "two", "#e/000.jpg": ""}


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tgz", "w:gz")])
def test_tars_are_listed_by_their_samples(tmp_path: Path, name: str, mode: str) -> None:
    path = write_tar(tmp_path / name, SAMPLES, mode)
    assert found(tmp_path) == {name + key: caption for key, caption in EXPECTED.items()}
    urls = read_folder(str(path))["url"].to_pylist()  # the tar alone
    assert urls == [f"file://{path}{key}" for key in EXPECTED]
    with fsspec.open(f"memory://tars-{name}/{name}", "wb") as file:
        file.write(path.read_bytes())
    assert found(f"memory://tars-{name}") == {name + key: caption for key, caption in EXPECTED.items()}


def test_a_tar_that_ends_early_is_listed_as_far_as_it_goes_and_once_more(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "s.tar", SAMPLES).read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: 512 * 9])  # into the fifth member
    assert found(tmp_path) == {"s.tar#d/000.jpg": "zero", "s.tar#d/001.png": "", "s.tar": ""}
    (tmp_path / "s.tar").write_bytes(b"no tar at all" * 99)
    assert found(tmp_path) == {"s.tar": ""}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9 * 1024), st.binary(max_size=600), st.booleans())
def test_damaged_tars_never_raise_anything_but_their_own_errors(at: int, junk: bytes, gz: bool) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if gz else "w") as tar:
        for name, data in SAMPLES:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    body = out.getvalue()
    at %= len(body)
    url = "memory://damaged/t.tar" + (".gz" if gz else "")
    with fsspec.open(url, "wb") as file:
        file.write(body[:at] + junk + body[at + len(junk) :])
    try:
        read_folder(url)
    except InputError as error:
        assert "cannot be read" in str(error) or "UTF-8" in str(error) or "too long" in str(error)


def test_a_packed_tar_may_not_unfold_without_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "bomb.tar.gz", [("a.jpg", bytes(200 << 20))], "w:gz")
    assert (tmp_path / "bomb.tar.gz").stat().st_size < 1 << 20
    with pytest.raises(tars.TooLarge):
        tars.open_tar(f"file://{tmp_path}/bomb.tar.gz")
    assert found(tmp_path) == {"bomb.tar.gz": ""}


def test_a_header_that_announces_gigabytes_is_not_read() -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    with fsspec.open("memory://headers/t.tar", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    tar = tars.open_tar("memory://headers/t.tar")
    assert not tar.whole and not tar.members
