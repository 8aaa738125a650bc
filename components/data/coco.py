"""COCO captions (Chen et al. 2015): ``captions_NAME.json`` with several captions a picture, pictures in folders.

::

    annotations/captions_train2014.json   or anywhere below the folder
    train2014/COCO_train2014_000000000009.jpg   or images/train2014/, images/, or beside

The annotations are read as a stream: in memory are the names of the pictures and their captions.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import quote

import pyarrow as pa

from components.contracts.errors import InputError
from components.data.annotations import HOLDOUT, TRAIN
from components.data.cub import SCHEMA
from components.data.folders import check_inside, listed, place_of
from components.data.json_stream import BadJson, array_elements

_FILE = re.compile(r"captions_([A-Za-z0-9][\w.-]*)\.json")


def read_coco(path: str) -> pa.Table:
    """Every picture of every ``captions_*.json`` below ``path``, with all its captions; url, caption, alternatives and
    split. ``train…`` is training, ``val…`` and ``test…`` are held out, where there are both kinds.

    Raises:
        InputError: there is no such file, or one is not what COCO writes.
    """
    fs, root, alone = place_of(path)
    names = {} if alone else listed(path)
    files = {name: found[1] for name in names if (found := _FILE.fullmatch(posixpath.basename(name)))}
    if not files:
        raise InputError(
            f"{path} has no captions_*.json",
            expected="COCO's annotations, such as annotations/captions_train2014.json, and the pictures beside them",
            remedy="check collect.files and collect.layout",
        )
    splits = {name: _split(subset) for name, subset in files.items()}
    told = {TRAIN, HOLDOUT} <= set(splits.values())
    base, rows = fs.unstrip_protocol(root), []
    for name, subset in files.items():
        check_inside(fs, root, f"{root}/{name}")
        try:
            with fs.open(f"{root}/{name}", "rb") as file:
                said = _captions(file)
        except (BadJson, OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{root}/{name} cannot be read as COCO captions: {error}",
                expected='{"images": [{"id": 9, "file_name": "a.jpg"}, …], '
                '"annotations": [{"image_id": 9, "caption": "…"}, …]}',
                remedy="copy the file again",
            ) from error
        for picture, captions in said:
            url = f"{base}/{quote(_place(picture, subset, names))}"
            first, *others = captions or [""]
            rows.append({"url": url, "caption": first, "alternatives": others, "split": splits[name] if told else None})
    if not rows:
        raise InputError(f"{path} names no pictures", expected="at least one in a captions_*.json")
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _split(subset: str) -> str | None:
    if subset.startswith("train"):
        return TRAIN
    return HOLDOUT if subset.startswith(("val", "test", "dev")) else None


def _place(picture: str, subset: str, names: dict[str, Any]) -> str:
    """Where the picture lies, or would lie."""
    places = [f"{subset}/{picture}", f"images/{subset}/{picture}", f"images/{picture}", picture]
    return next((place for place in places if place in names), places[0])


def _captions(file: IO[bytes]) -> Iterator[tuple[str, list[str]]]:
    """File name and distinct captions of every picture, in the order of ``images``."""
    pictures, captions = dict[Any, str](), dict[Any, list[str]]()
    for key, value in array_elements(file):
        if key == "images":
            pictures[_field(value, "id", int | str)] = _field(value, "file_name", str)
        elif key == "annotations":
            text = " ".join(_field(value, "caption", str).split())
            said = captions.setdefault(_field(value, "image_id", int | str), [])
            if text and text not in said:
                said.append(text)
    if unknown := next((number for number in captions if number not in pictures), None):
        raise BadJson(f"a caption is of picture {unknown!r}, which is not among the images")
    return ((picture, captions.get(number, [])) for number, picture in pictures.items())


def _field(value: Any, name: str, kind: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), kind):
        raise BadJson(f"an entry has no {name!r}: {str(value)[:80]}")
    found = value[name]
    # half of a surrogate pair: JSON can write it, no text has it
    return found.encode("utf-8", "replace").decode() if isinstance(found, str) else found
