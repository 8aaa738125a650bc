"""Reading a list of URLs and captions: the input of a collection."""

from __future__ import annotations

from typing import Any

import fsspec
import pyarrow as pa

from components.contracts.errors import InputError

LIST_SCHEMA = pa.schema([("url", pa.string()), ("caption", pa.string())])
_READERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def read_list(path_or_url: str, url_column: str = "url", caption_column: str = "caption") -> pa.Table:
    """The list as a table of :data:`LIST_SCHEMA`, rows in the order of the file.

    Args:
        path_or_url: a parquet, csv, tsv or jsonl file, as a path or any fsspec URL. ``.gz`` and ``.zst`` after
            csv, tsv and jsonl are unpacked.
        url_column: name of the column of URLs.
        caption_column: name of the column of captions.

    Raises:
        InputError: the file is missing, of another format or unreadable, lacks a column, or has no rows.
    """
    kind, compression = _format_of(path_or_url)
    try:
        with fsspec.open(path_or_url, "rb", compression=compression) as file:
            table = _parse(kind, file)
    except FileNotFoundError as error:
        raise InputError(
            f"The list {path_or_url} does not exist", remedy="check collect.urls; it is read from the project's root"
        ) from error
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise InputError(
            f"The list {path_or_url} cannot be read as {kind}: {_first_line(error)}",
            expected=f"a {kind} file with the columns {url_column!r} and {caption_column!r}",
            remedy="write the file anew, or give it the ending of its real format (.parquet, .csv, .tsv, .jsonl)",
        ) from error
    return as_list(table, url_column, caption_column, path_or_url)


def as_list(table: pa.Table, url_column: str, caption_column: str, where: str) -> pa.Table:
    """The two columns of ``table`` as :data:`LIST_SCHEMA`; ``where`` names their origin in messages.

    Raises:
        InputError: a column is missing or not text, or there are no rows.
    """
    for key, column in (("url_column", url_column), ("caption_column", caption_column)):
        if column not in table.column_names:
            found = ", ".join(map(repr, table.column_names)) or "none"
            raise InputError(
                f"The list {where} has no column {column!r}; it has {found}",
                expected=f"a column of {'URLs' if key == 'url_column' else 'captions'} called {column!r}",
                remedy=f"name the right column with --set collect.{key}=NAME",
            )
    try:
        chosen = table.select([url_column, caption_column]).rename_columns(LIST_SCHEMA.names).cast(LIST_SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(
            f"The columns {url_column!r} and {caption_column!r} of {where} are not text: {_first_line(error)}",
            expected="one URL and one caption a row",
        ) from error
    if not chosen.num_rows:
        raise InputError(f"The list {where} has no rows", expected="at least one URL with a caption")
    return chosen.combine_chunks()


def _format_of(path: str) -> tuple[str, str | None]:
    name = path.split("?", 1)[0].lower()
    compression = None
    for ending, codec in ((".gz", "gzip"), (".zst", "zstd")):
        if name.endswith(ending):
            name, compression = name[: -len(ending)], codec
    for ending, kind in _READERS.items():
        if name.endswith(ending) and not (kind == "parquet" and compression):
            return kind, compression
    raise InputError(
        f"The list {path} is of a format that is not known",
        expected="a name ending in .parquet, .csv, .tsv or .jsonl (the last three also with .gz or .zst)",
    )


def _parse(kind: str, file: Any) -> pa.Table:
    if kind == "parquet":
        import pyarrow.parquet as pq

        return pq.read_table(file)
    if kind == "jsonl":
        from pyarrow import json

        return json.read_json(pa.BufferReader(file.read()))
    from pyarrow import csv

    return csv.read_csv(
        pa.BufferReader(file.read()),
        parse_options=csv.ParseOptions(delimiter="\t" if kind == "tsv" else ",", newlines_in_values=True),
        # captions such as "null" or "12" are text
        convert_options=csv.ConvertOptions(strings_can_be_null=False),
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
