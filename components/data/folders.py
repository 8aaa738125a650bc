"""Folders of pictures with captions beside them, and webdataset tars, as a list of URLs and captions.

A picture's caption is, first found: the text of ``name.txt`` or ``name.caption`` beside it; its row in a
``metadata`` or ``captions`` file (csv or jsonl) of its folder or one above it, the nearest first; empty text.
Samples of a tar are files of one name up to the first dot: the picture, and ``txt``, ``caption`` or ``json``.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa

from components.contracts.errors import InputError
from components.data import tars
from components.data.lists import CAPTION_NAMES, LIST_SCHEMA, read_list

# those that are not read are listed too: each ends in the ledger with its reason
PICTURES = frozenset({"jpg", "jpeg", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "avif",
                      "heic", "heif", "jxl", "jp2", "svg"})  # fmt: skip
_SIDECARS = ("txt", "caption")
_TABLES = tuple(f"{name}.{kind}" for name in ("metadata", "captions") for kind in ("csv", "jsonl"))
_FILE_NAMES = ("file_name", "filename", "file", "image", "path", "name")
_CAPTION_BYTES = 1 << 16  # of a sidecar
_JSON_BYTES = 1 << 20  # of a tar's caption or json
_BATCH = 256  # sidecars read at once


def read_folder(path: str, caption_column: str = "caption") -> pa.Table:
    """Every picture below ``path`` with its caption, in the order of their paths; :data:`LIST_SCHEMA`.

    URLs are ``{folder}/{name}`` and, in tars, ``{folder}/{shard}.tar#{member}``, percent-quoted as in any URL. A
    row of a metadata file whose picture is not there is listed too, and so is a tar that ends early, without a
    member, after its samples: both fail when they are read, and the ledger says why.

    Args:
        path: a folder or one tar, as a path or any fsspec URL.
        caption_column: of metadata files and of ``json`` in tars; if it is not there, a usual name is taken.

    Raises:
        InputError: there is no such folder or not one picture in it, or a file of captions cannot be read.
    """
    rows = list(_rows(path, caption_column))
    if not rows:
        raise InputError(
            f"{path} has no pictures",
            expected=f"files ending in {', '.join(sorted(PICTURES))}, or tars of them, at any depth",
            remedy="check collect.files",
        )
    urls, captions = zip(*rows, strict=True)
    return pa.table([pa.array(urls, pa.string()), pa.array(captions, pa.string())], schema=LIST_SCHEMA)


def place_of(path: str) -> tuple[Any, str, str | None]:
    """(filesystem, the root folder in it, the one tar that is meant or None) of a path or fsspec URL.

    Raises:
        InputError: no such kind of place is known, or it is on the web.
    """
    try:
        fs, inner = fsspec.core.url_to_fs(path)
        inner = str(inner).rstrip("/")
        alone = inner.lower().endswith(tars.ENDINGS) and bool(fs.isfile(inner))
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path} cannot be read: {error}", remedy="check collect.files") from error
    if "http" in fs.protocol:  # it would pass by the guard and the manners
        raise InputError(f"{path} is on the web", remedy="list its URLs in a file and name that in collect.urls")
    return (fs, inner.rpartition("/")[0], inner) if alone else (fs, inner, None)


def listed(path: str) -> dict[str, dict[str, Any]]:
    """fsspec's info of every file by its path relative to the root, in order. Hidden files and what lies behind
    links to folders are left out. Where a tar is meant, it is the only one.

    Raises:
        InputError: there is nothing at ``path``, or it cannot be listed.
    """
    fs, root, alone = place_of(path)
    try:
        if alone is not None:
            return {alone.rpartition("/")[2]: fs.info(alone)}
        if not fs.isdir(root):
            raise InputError(f"The folder {path} does not exist", remedy="check collect.files")
        if is_local(fs):  # fsspec follows links to folders, in circles if need be
            found = (os.path.join(top, name) for top, _, names in os.walk(root) for name in names)
            entries = {os.path.relpath(name, root): {"name": name, "size": _size(name)} for name in found}
        else:
            entries = {str(name)[len(root) :].lstrip("/"): info for name, info in fs.find(root, detail=True).items()}
    except (OSError, ValueError) as error:
        raise InputError(f"The folder {path} cannot be listed: {error}", remedy="check collect.files") from error
    return {name: entries[name] for name in sorted(entries) if not f"/{name}".count("/.")}


def is_picture(name: str) -> bool:
    """Whether a file is listed as a picture, by its ending."""
    return name.rpartition(".")[2].lower() in PICTURES and "." in name


def _rows(path: str, caption_column: str) -> Iterator[tuple[str, str]]:
    names = listed(path)
    fs, inner, _ = place_of(path)
    root = fs.unstrip_protocol(inner)
    tables = dict[str, dict[str, str]]()
    for name in names:
        if posixpath.basename(name) in _TABLES:
            check_inside(fs, inner, f"{inner}/{name}")
            tables[name] = _table(f"{root}/{name}", caption_column)
    beside = _sidecars(fs, inner, names)
    named = {posixpath.normpath(posixpath.join(posixpath.dirname(table), name))
             for table, rows in tables.items() for name in rows}  # fmt: skip
    for name in sorted({*names, *named}):
        if name.lower().endswith(tars.ENDINGS):
            yield from _of_tar(f"{root}/{quote(name)}", f"{root}/{name}", caption_column)
        elif name in named or is_picture(name):
            caption = beside.get(name.rpartition(".")[0])
            yield f"{root}/{quote(name)}", _of_tables(name, tables) if caption is None else caption


def _of_tables(name: str, tables: dict[str, dict[str, str]]) -> str:
    folder = posixpath.dirname(name)
    while True:
        for table in _TABLES:
            rows = tables.get(posixpath.join(folder, table), {})
            if (caption := rows.get(posixpath.relpath(name, folder or "."))) is not None:
                return caption
        if folder in ("", "/"):
            return ""
        folder = posixpath.dirname(folder)


def _table(url: str, caption_column: str) -> dict[str, str]:
    """Captions by file name, relative to the table's folder."""
    with fsspec.open(url, "rb") as file:
        head = file.readline(_CAPTION_BYTES).decode("utf-8-sig", "replace")
    try:
        columns = list(json.loads(head)) if url.endswith(".jsonl") else next(csv.reader([head]), [])
    except (ValueError, TypeError, RecursionError, csv.Error):
        columns = []  # what is wrong is said by whoever reads the whole file
    for usual in (_FILE_NAMES, (caption_column, *CAPTION_NAMES)):
        if columns and not set(usual) & set(columns):
            raise InputError(
                f"{url} has no column of {'file names' if usual is _FILE_NAMES else 'captions'}; it has "
                f"{', '.join(map(repr, columns[:20]))}",
                expected=f"one of {', '.join(usual)}",
                remedy="" if usual is _FILE_NAMES else "name the column with --set collect.caption_column=NAME",
            )
    file_column = next((name for name in _FILE_NAMES if name in columns), _FILE_NAMES[0])
    caption_column = next((name for name in (caption_column, *CAPTION_NAMES) if name in columns), caption_column)
    rows = read_list(url, file_column, caption_column)
    pairs = zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)
    return {posixpath.normpath(name.replace("\\", "/")): caption or "" for name, caption in pairs if name}


def _sidecars(fs: Any, inner: str, names: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Captions from files of their own, by the picture's path without its ending."""
    found = dict[str, str]()  # path of the picture without its ending: path of the caption
    for name in names:
        stem = name.rpartition(".")[0]
        if is_picture(name) and (texts := [text for end in _SIDECARS if (text := f"{stem}.{end}") in names]):
            found[stem] = texts[0]
    for name in found.values():
        if (names[name].get("size") or 0) > _CAPTION_BYTES:
            raise InputError(f"The caption {inner}/{name} is too long", expected=f"at most {_CAPTION_BYTES} bytes")
        check_inside(fs, inner, f"{inner}/{name}")
    captions, stems = dict[str, str](), list(found)
    for start in range(0, len(stems), _BATCH):
        batch = stems[start : start + _BATCH]
        try:
            texts_of = fs.cat([f"{inner}/{found[stem]}" for stem in batch])
        except OSError as error:
            raise InputError(f"The captions in {inner} cannot be read: {error}") from error
        for stem in batch:
            captions[stem] = _text(texts_of[f"{inner}/{found[stem]}"], f"{inner}/{found[stem]}")
    return captions


def check_inside(fs: Any, root: str, path: str) -> None:
    """Refuse a local file that a link leads out of the root to.

    Raises:
        InputError: it does.
    """
    if is_local(fs) and not Path(path).resolve().is_relative_to(Path(root).resolve()):
        raise InputError(f"{path} is a link that leads out of {root}", remedy="copy the file there instead")


def is_local(fs: Any) -> bool:
    """Whether a filesystem of fsspec is this machine's."""
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _of_tar(shown: str, url: str, caption_column: str) -> Iterator[tuple[str, str]]:
    pictures, whole = 0, True
    try:
        with contextlib.closing(tars.open_tar(url)) as tar:
            whole = tar.whole
            texts = dict[str, dict[str, tars.Member]]()
            for name, member in tar.members.items():
                key, ending = _key(name)
                if ending in (*_SIDECARS, "json") and member.regular:
                    texts.setdefault(key, {})[ending] = member
            for name in tar.members:
                key, ending = _key(name)
                if ending in PICTURES:
                    pictures += 1
                    yield (
                        f"{shown}#{quote(name)}",
                        _tar_caption(tar, texts.get(key, {}), f"{url}#{key}", caption_column),
                    )
    except (OSError, tars.TooLarge):
        whole = False
    if not whole or not pictures:
        yield shown, ""


def _key(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}/{key}", ending.lower()


def _tar_caption(tar: tars.Tar, texts: dict[str, tars.Member], where: str, caption_column: str) -> str:
    for ending in (*_SIDECARS, "json"):
        if (member := texts.get(ending)) is None:
            continue
        data = tar.read(member, _JSON_BYTES)
        if len(data) < member.size:
            if tar.whole:
                raise InputError(f"The caption {where}.{ending} is too long", expected=f"at most {_JSON_BYTES} bytes")
            return ""  # the tar ends within it
        if ending != "json":
            return _text(data, f"{where}.{ending}")
        try:
            meta = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}.json cannot be read as JSON: {error}") from error
        for name in (caption_column, *CAPTION_NAMES):
            if isinstance(meta, dict) and isinstance(meta.get(name), str):
                return str(meta[name])
    return ""


def _text(data: bytes, where: str) -> str:
    """A caption's lines, joined by spaces."""
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise InputError(f"The caption {where} is not UTF-8", remedy="save it as UTF-8") from error


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing: it is listed and fails when it is read
        return None
