"""Reading a list of what is to be taken down: URLs, SHA-256 digests and hosts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from components.contracts.errors import InputError
from components.data.takedown import KINDS, rule, rule_of

_BYTES = 1 << 30  # a longer list is refused: it is read into memory
_FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def read_rules(path_or_url: str) -> list[str]:
    """The keys of the rules of a list, as :func:`components.data.takedown.rule` makes them, each once.

    Args:
        path_or_url: a path or any fsspec URL. ``.txt`` has one URL, SHA-256 or host a line, empty lines and lines
            that begin with # left out; csv, tsv, jsonl and parquet have columns ``url``, ``sha256`` and ``host``,
            one of them at least, of which every value that is not empty is a rule.

    Raises:
        InputError: the file is missing, too large, of another format or unreadable, or holds no rule or a wrong one.
    """
    ending = next((e for e in _FORMATS if path_or_url.lower().endswith(e)), None)
    if ending is None:
        raise InputError(
            f"The list {path_or_url} is of a format that is not known",
            expected=f"a name ending in {', '.join(_FORMATS)}",
        )
    try:
        fs, path = fsspec.core.url_to_fs(path_or_url)
        if fs.size(path) > _BYTES:
            raise InputError(f"The list {path_or_url} is larger than {_BYTES >> 20} MiB", remedy="cut it into several")
        data = bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise InputError(f"The list {path_or_url} does not exist", remedy="check the path after --list") from error
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise InputError(f"The list {path_or_url} cannot be read: {_first_line(error)}") from error
    found: dict[str, None] = {}
    try:
        for place, kind, text in _parquet(data) if ending == ".parquet" else _lines(data.decode("utf-8-sig"), ending):
            try:
                found[rule(kind, text) if kind else rule_of(text)] = None
            except InputError as error:
                raise InputError(f"{path_or_url}, {place}: {error.problem}", expected=error.expected) from error
    except (ValueError, csv.Error) as error:  # pyarrow's errors and UnicodeDecodeError are of the first
        raise InputError(
            f"The list {path_or_url} cannot be read as {ending[1:]}: {_first_line(error)}",
            expected=f"text in UTF-8, or a parquet file; columns {', '.join(KINDS)}",
        ) from error
    if not found:
        raise InputError(f"The list {path_or_url} holds no rule", expected="at least one URL, SHA-256 or host")
    return list(found)


def _lines(text: str, ending: str) -> Iterator[tuple[str, str | None, str]]:
    """Place, kind (None where its form tells it) and text of every rule."""
    if ending == ".txt":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield f"line {number}", None, line
    elif ending in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no object")
                _require(list(row))
                yield from ((f"line {number}", kind, str(row[kind])) for kind in KINDS if row.get(kind))
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if ending == ".tsv" else ",", strict=True)
        _require(list(reader.fieldnames or ()))
        for cells in reader:
            place = f"line {reader.line_num}"
            yield from ((place, kind, value) for kind in KINDS if (value := (cells.get(kind) or "").strip()))


def _parquet(data: bytes) -> Iterator[tuple[str, str | None, str]]:
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        _require(file.schema_arrow.names)
        row = 0
        for group in range(file.num_row_groups):
            names = [kind for kind in KINDS if kind in file.schema_arrow.names]
            table = file.read_row_group(group, columns=names, use_threads=False)
            for cells in table.to_pylist():
                yield from ((f"row {row}", kind, str(value)) for kind, value in cells.items() if value)
                row += 1


def _require(names: list[str]) -> None:
    if not set(KINDS) & set(names):
        raise ValueError(f"no column {', '.join(KINDS)}; it has {', '.join(map(repr, names)) or 'none'}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
