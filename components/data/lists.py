"""Reading a list of URLs and captions: the input of a collection.

Text is read as a stream, so that besides the rows themselves only a batch is in memory; a parquet file is read
by its two columns.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa

from components.contracts.errors import InputError

LIST_SCHEMA = pa.schema([("url", pa.string()), ("caption", pa.string())])
URL_NAMES = ("url", "urls", "image_url", "img_url", "imageurl", "image", "link", "src", "href", "uri")
CAPTION_NAMES = ("caption", "captions", "text", "txt", "title", "alt", "alt_text", "description", "prompt", "label")
_KINDS = ("parquet", "csv", "tsv", "jsonl", "ndjson", "json", "txt")
_CODECS = {"gz": "gzip", "zst": "zstd"}
_BATCH = 65_536  # rows
_LINE_CHARS = 1 << 24  # of a list as JSON lines or text
_JSON_BYTES = 1 << 30  # of a list as one JSON value, unpacked; it is read whole

Row = tuple[str | None, str | None]


class _Bad(Exception):
    """What is wrong with the file, and where in it: the end of a message."""


def read_list(path_or_url: str, url_column: str = "url", caption_column: str = "caption") -> pa.Table:
    """The list as a table of :data:`LIST_SCHEMA`, rows in the order of the files and, in each, of its rows.

    Args:
        path_or_url: a file, a folder of such files (with those below it, in the order of their paths) or a glob
            pattern, as a path or any fsspec URL. By their endings: ``parquet``; ``csv`` and ``tsv`` with a header;
            ``jsonl`` or ``ndjson``; ``json``, an array of objects or an object of columns; ``txt``, a URL a line,
            after it a tab or space and the caption, which may be missing. All but parquet may be packed, ``.gz``
            or ``.zst``. Text is UTF-8, with or without a byte order mark.
        url_column: name of the column of URLs; of no meaning for ``txt``.
        caption_column: name of the column of captions.

    Raises:
        InputError: a file is missing, of another format or unreadable (with the line), lacks a column, or there
            are no rows.
    """
    tables = []
    for name, url in _files(path_or_url):
        kind, codec = format_of(name)
        try:
            if kind == "parquet":
                tables.append(_of_parquet(url, url_column, caption_column, name))
            else:
                with _unpacked(url, codec) as file:
                    tables.append(_of_rows(_READERS[kind](file, url_column, caption_column, name)))
        except FileNotFoundError as error:
            raise _does_not_exist(name) from error
        except _Bad as error:
            raise _unreadable(name, kind, str(error), url_column, caption_column) from error
        except UnicodeDecodeError as error:
            problem = f"it is not UTF-8 (byte {error.object[error.start]:#04x})"
            raise _unreadable(name, kind, problem, url_column, caption_column) from error
        except (pa.ArrowException, OSError, EOFError, zlib.error, ValueError, ImportError) as error:
            raise _unreadable(name, kind, _first_line(error), url_column, caption_column) from error
    table = pa.concat_tables(tables)
    if not table.num_rows:
        raise InputError(f"The list {path_or_url} has no rows", expected="at least one URL with a caption")
    return table.combine_chunks()


def format_of(name: str) -> tuple[str, str | None]:
    """Format and compression by the ending of a file's name.

    Raises:
        InputError: the ending is not one of those that are read.
    """
    parts = name.split("?", 1)[0].rpartition("/")[2].lower().split(".")
    codec = _CODECS.get(parts[-1])
    kind = parts[-2] if codec and len(parts) > 2 else parts[-1]
    if len(parts) > 1 and kind in _KINDS and not (codec and kind == "parquet"):
        return ("jsonl" if kind == "ndjson" else kind), codec
    raise InputError(
        f"The list {name} is of a format that is not known",
        expected="a name ending in .parquet, .csv, .tsv, .jsonl, .ndjson, .json or .txt (all but the first also "
        "with .gz or .zst)",
    )


def missing_column(where: str, key: str, column: str, found: Sequence[str]) -> InputError:
    """The error for a list without this column, with the name that was probably meant, where one of those usual is
    there. ``key`` is the recipe's: ``url_column`` or ``caption_column``."""
    usual = URL_NAMES if key == "url_column" else CAPTION_NAMES
    meant = [name for name in found if name.strip().lower() in usual]
    return InputError(
        f"The list {where} has no column {column!r}; it has {', '.join(map(repr, found[:20])) or 'none'}",
        expected=f"a column of {'URLs' if key == 'url_column' else 'captions'} called {column!r}",
        remedy=f"name the right column with --set collect.{key}={meant[0] if len(meant) == 1 else 'NAME'}",
    )


def _files(path_or_url: str) -> list[tuple[str, str]]:
    """(name for messages, URL) of every file of the list."""
    try:
        fs, path = fsspec.core.url_to_fs(path_or_url)
        if any(sign in path for sign in "*?[") and not fs.exists(path):
            found = sorted(str(p) for p in fs.glob(path) if fs.isfile(p))
        elif fs.isdir(path):
            found = sorted(str(p) for p in fs.find(path))
        else:
            return [(path_or_url, path_or_url)]
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"The list {path_or_url} cannot be opened: {_first_line(error)}") from error
    lists = [name for name in found if _is_list(name)]
    if not lists:
        raise InputError(
            f"{path_or_url} has no list of a known format; it has {len(found)} other files",
            expected=f"files ending in {', '.join('.' + kind for kind in _KINDS)}",
        )
    return [(name, fs.unstrip_protocol(name)) for name in lists]


def _is_list(name: str) -> bool:
    with contextlib.suppress(InputError):
        format_of(name)
        return not name.rpartition("/")[2].startswith((".", "_"))
    return False


@contextlib.contextmanager
def _unpacked(url: str, codec: str | None) -> Iterator[IO[bytes]]:
    if codec != "zstd":
        with fsspec.open(url, "rb", compression=codec) as file:
            yield file
        return
    with fsspec.open(url, "rb") as packed:
        stream = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")  # reads in this thread only
        with stream, io.BufferedReader(_Readable(stream), 1 << 18) as file:
            yield file


class _Readable(io.RawIOBase):
    """Arrow's stream as Python's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _of_rows(rows: Iterator[Row]) -> pa.Table:
    batches, urls, captions = [], list[str | None](), list[str | None]()
    for url, caption in rows:
        urls.append(url)
        captions.append(caption)
        if len(urls) == _BATCH:
            batches.append(pa.record_batch([pa.array(urls, pa.string()), pa.array(captions, pa.string())], LIST_SCHEMA))
            urls, captions = [], []
    batches.append(pa.record_batch([pa.array(urls, pa.string()), pa.array(captions, pa.string())], LIST_SCHEMA))
    return pa.Table.from_batches(batches, LIST_SCHEMA)


# -- the formats


def _of_parquet(url: str, url_column: str, caption_column: str, where: str) -> pa.Table:
    import pyarrow.parquet as pq

    fs, path = fsspec.core.url_to_fs(url)
    with tempfile.TemporaryDirectory(prefix="atelier-list-") as folder:
        if "file" not in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
            fs.get_file(path, f"{folder}/list.parquet")
            path = f"{folder}/list.parquet"
        if not Path(path).exists():
            raise FileNotFoundError(path)
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for key, column in (("url_column", url_column), ("caption_column", caption_column)):
                if column not in names:
                    raise missing_column(where, key, column, names)
            table = file.read(columns=[url_column, caption_column])
    try:
        return table.select([url_column, caption_column]).rename_columns(LIST_SCHEMA.names).cast(LIST_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"The columns {url_column!r} and {caption_column!r} of {where} are not text: {_first_line(error)}",
            expected="one URL and one caption a row",
        ) from error


def _of_csv(file: IO[bytes], url_column: str, caption_column: str, where: str, comma: str = ",") -> Iterator[Row]:
    rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=comma, strict=True)
    try:
        header = next((row for row in rows if row), None)
        if header is None:
            return
        for key, column in (("url_column", url_column), ("caption_column", caption_column)):
            if column not in header:
                raise missing_column(where, key, column, header)
        url, caption = header.index(url_column), header.index(caption_column)
        for row in rows:
            if len(row) == len(header):
                yield row[url] or None, row[caption]
            elif row:
                raise _Bad(f"line {rows.line_num} has {len(row)} fields, the header has {len(header)}")
    except csv.Error as error:
        raise _Bad(f"line {rows.line_num}: {error}") from error


def _of_tsv(file: IO[bytes], url_column: str, caption_column: str, where: str) -> Iterator[Row]:
    return _of_csv(file, url_column, caption_column, where, comma="\t")


def _of_jsonl(file: IO[bytes], url_column: str, caption_column: str, where: str) -> Iterator[Row]:
    values = ((f"line {number}", _json(line, f"line {number}")) for number, line in _lines(file) if line.strip())
    yield from _of_objects(values, url_column, caption_column, where)


def _of_json(file: IO[bytes], url_column: str, caption_column: str, where: str) -> Iterator[Row]:
    data = file.read(_JSON_BYTES + 1)
    if len(data) > _JSON_BYTES:
        raise _Bad(f"it is larger than {_JSON_BYTES >> 20} MiB; write one object a line, as .jsonl")
    value = _json(data.decode("utf-8-sig"), "the file")
    if isinstance(value, list):
        yield from _of_objects(((f"item {i}", item) for i, item in enumerate(value)), url_column, caption_column, where)
        return
    if not isinstance(value, dict):
        raise _Bad("it is neither an array of objects nor an object of columns")
    columns = []
    for key, column in (("url_column", url_column), ("caption_column", caption_column)):
        if column not in value:
            raise missing_column(where, key, column, list(value))
        found = value[column]
        columns.append(list(found.values()) if isinstance(found, dict) else found)  # pandas writes {"0": ..., ...}
        if not isinstance(columns[-1], list):
            raise _Bad(f"column {column!r} is not an array")
    if len(columns[0]) != len(columns[1]):
        raise _Bad(f"its columns have {len(columns[0])} and {len(columns[1])} values")
    for i, (url, caption) in enumerate(zip(*columns, strict=True)):
        yield _text(url, url_column, f"item {i}") or None, _text(caption, caption_column, f"item {i}")


def _of_txt(file: IO[bytes], _url_column: str, _caption_column: str, _where: str) -> Iterator[Row]:
    for _, line in _lines(file):
        parts = line.strip().split(None, 1)
        if parts:
            yield parts[0], parts[1] if len(parts) == 2 else ""


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    text, number = io.TextIOWrapper(file, "utf-8-sig"), 0
    while line := text.readline(_LINE_CHARS + 1):
        number += 1
        if len(line) > _LINE_CHARS:
            raise _Bad(f"line {number} is longer than {_LINE_CHARS} characters")
        yield number, line


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Bad(f"{place} is not JSON: {_first_line(error)}") from error


def _of_objects(values: Iterator[tuple[str, Any]], url_column: str, caption_column: str, where: str) -> Iterator[Row]:
    seen, wanted = dict[str, None](), (("url_column", url_column), ("caption_column", caption_column))
    absent, some = [column for _, column in wanted], False
    for place, value in values:
        if not isinstance(value, dict):
            raise _Bad(f"{place} is not an object")
        some = True
        if absent:  # a row may lack its caption, but no list is all without
            absent = [column for column in absent if column not in value]
            if len(seen) < 100:
                seen |= dict.fromkeys(value)
        yield (
            _text(value.get(url_column), url_column, place) or None,
            _text(value.get(caption_column), caption_column, place),
        )
    for key, column in wanted:
        if some and column in absent:
            raise missing_column(where, key, column, list(seen))


def _text(value: Any, column: str, place: str) -> str | None:
    if value is None or isinstance(value, str):
        if value is not None and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            return value.encode("utf-8", "replace").decode()  # half of a surrogate pair: no text has it
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise _Bad(f"{place}: {column!r} is not text")


_READERS: dict[str, Callable[[IO[bytes], str, str, str], Iterator[Row]]] = {
    "csv": _of_csv, "tsv": _of_tsv, "jsonl": _of_jsonl, "json": _of_json, "txt": _of_txt,
}  # fmt: skip


def _does_not_exist(name: str) -> InputError:
    return InputError(
        f"The list {name} does not exist", remedy="check collect.urls; it is read from the project's root"
    )


def _unreadable(name: str, kind: str, problem: str, url_column: str, caption_column: str) -> InputError:
    columns = "a URL a line" if kind == "txt" else f"the columns {url_column!r} and {caption_column!r}"
    return InputError(
        f"The list {name} cannot be read as {kind}: {problem}",
        expected=f"a {kind} file in UTF-8 with {columns}",
        remedy="mend the file, or give it the ending of its real format (.parquet, .csv, .tsv, .jsonl, .json, .txt)",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
