"""CUB-200-2011 as the text-to-image literature lays it out (AttnGAN, DM-GAN), and COCO in the same layout.

::

    train/filenames.pickle, test/filenames.pickle   lists of names: 002.Laysan_Albatross/Laysan_Albatross_0002_1027
    text/NAME.txt                                   a caption a line, ten of them
    CUB_200_2011/images/NAME.jpg                    or images/NAME.jpg
    CUB_200_2011/images.txt, bounding_boxes.txt     for the crop

Nothing else there is read; the pickles are read as data and never run (:mod:`components.data.literal_pickle`).
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pyarrow as pa

from components.contracts.errors import InputError
from components.data.annotations import ANNOTATION_SCHEMA, HOLDOUT, TRAIN
from components.data.folders import check_inside, listed, place_of
from components.data.lists import LIST_SCHEMA
from components.data.literal_pickle import MAX_BYTES, read_literal

SCHEMA = pa.schema([*LIST_SCHEMA, *list(ANNOTATION_SCHEMA)[1:]])  # url, caption, alternatives, split
_SPLITS = {"train": TRAIN, "test": HOLDOUT}  # by the folder of the pickle
_IMAGES = ("CUB_200_2011/images", "images")
_BATCH = 256  # caption files read at once
_TEXT_BYTES = 1 << 16  # of one of them
_TABLE_BYTES = 1 << 24  # of images.txt and bounding_boxes.txt
_CROP = 0.75  # half the side of the crop, as a share of the longer side of the box

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


def read_cub(path: str, crop: bool = False) -> pa.Table:
    """Every picture that the pickles name, with all its captions and its split; columns of :data:`SCHEMA`.

    A name without a picture is listed too and ends in the ledger as missing; one without a caption file has an empty
    caption. Where only one of the two pickles is there, no split is told.

    Args:
        path: the folder (``birds``), as a path or any fsspec URL.
        crop: pictures are cut to the bird: the square around the middle of its bounding box whose side is 1.5 times
            the longer side of the box, as far as the picture reaches. The cut is told by the URL's media fragment.

    Raises:
        InputError: the layout is another one, or a file of it cannot be read.
    """
    fs, root, alone = place_of(path)
    names = {} if alone else listed(path)
    split_of = _filenames(fs, root, names, path)
    folder = next((f for f in _IMAGES if any(name.startswith(f"{f}/") for name in names)), _IMAGES[0])
    captions = _captions(fs, root, names, list(split_of))
    boxes = _boxes(fs, root, names) if crop else {}
    base, both = fs.unstrip_protocol(root), len(set(split_of.values())) > 1
    rows = []
    for name, split in split_of.items():
        file = f"{folder}/{name}.jpg"
        url = f"{base}/{quote(file)}"
        if crop:
            url += f"#xywh={_fragment(boxes, f'{name}.jpg')}"
        said = captions.get(name) or [""]
        rows.append({"url": url, "caption": said[0], "alternatives": said[1:], "split": split if both else None})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _filenames(fs: Any, root: str, names: dict[str, Any], path: str) -> dict[str, str]:
    """Split by name, in the order of the pickles."""
    found: dict[str, str] = {}
    for folder, split in _SPLITS.items():
        file = f"{folder}/filenames.pickle"
        if file not in names:
            continue
        value = read_literal(_read(fs, root, file, MAX_BYTES), f"{root}/{file}")
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
            raise InputError(f"{root}/{file} is not a list of names", expected="a pickled list of strings")
        if twice := next((name for name in value if found.get(name, split) != split), None):
            raise InputError(
                f"{twice} is in the filenames.pickle of train and of test",
                expected="no picture in both splits",
                remedy="remove it from one of the two",
            )
        found |= dict.fromkeys(value, split)
    if not found:
        raise InputError(
            f"{path} has no train/filenames.pickle or test/filenames.pickle with names in it",
            expected="the folder that AttnGAN and DM-GAN read: text/, train/, test/ and CUB_200_2011/images/",
            remedy="check collect.files and collect.layout",
        )
    return found


def _captions(fs: Any, root: str, names: dict[str, Any], wanted: list[str]) -> dict[str, list[str]]:
    """The distinct captions of every name, in the order of its file."""
    files = {f"text/{name}.txt": name for name in wanted if f"text/{name}.txt" in names}
    found, paths = dict[str, list[str]](), list(files)
    for start in range(0, len(paths), _BATCH):
        batch = paths[start : start + _BATCH]
        for file in batch:
            if (names[file].get("size") or 0) > _TEXT_BYTES:
                raise InputError(f"The captions {root}/{file} are too long", expected=f"at most {_TEXT_BYTES} bytes")
            check_inside(fs, root, f"{root}/{file}")
        try:
            data = fs.cat([f"{root}/{file}" for file in batch])
        except OSError as error:
            raise InputError(f"The captions in {root}/text cannot be read: {error}") from error
        for file in batch:
            # characters that a transcriber's editor lost stand there as two replacement characters
            text = data[f"{root}/{file}"].decode("utf-8-sig", "replace").replace("\ufffd\ufffd", " ")
            lines = (" ".join(line.split()) for line in text.splitlines())
            found[files[file]] = list(dict.fromkeys(line for line in lines if line))
    return found


def _boxes(fs: Any, root: str, names: dict[str, Any]) -> dict[str, Box]:
    """Bounding boxes by the picture's name."""
    tables = []
    for file in ("CUB_200_2011/images.txt", "CUB_200_2011/bounding_boxes.txt"):
        if file not in names:
            raise InputError(
                f"{root} has no {file}, which the crop is made by",
                expected="images.txt and bounding_boxes.txt in CUB_200_2011/",
                remedy="copy them there, or set collect.crop=false",
            )
        rows = {}
        for line in _read(fs, root, file, _TABLE_BYTES).decode("utf-8", "replace").splitlines():
            number, _, rest = line.strip().partition(" ")
            if number:
                rows[number] = rest.split() if "boxes" in file else [rest]
        tables.append(rows)
    found = {}
    for number, (name,) in tables[0].items():
        try:
            x, y, width, height = map(float, tables[1][number])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{root}/CUB_200_2011/bounding_boxes.txt has no box for picture {number}, {name}",
                expected="a line with its number, x, y, width and height",
            ) from error
        found[name] = (x, y, width, height)
    return found


def _fragment(boxes: dict[str, Box], name: str) -> str:
    """``x,y,width,height`` of the crop, which may reach over the right and the lower border."""
    if name not in boxes:
        raise InputError(f"images.txt has no line for {name}", remedy="copy it again, or set collect.crop=false")
    x, y, width, height = boxes[name]
    half = int(max(width, height) * _CROP)
    centre_x, centre_y = int((2 * x + width) / 2), int((2 * y + height) / 2)
    left, top = max(0, centre_x - half), max(0, centre_y - half)
    return f"{left},{top},{max(1, centre_x + half - left)},{max(1, centre_y + half - top)}"


def _read(fs: Any, root: str, name: str, most: int) -> bytes:
    check_inside(fs, root, f"{root}/{name}")
    try:
        with fs.open(f"{root}/{name}", "rb") as file:
            data = bytes(file.read(most + 1))
    except OSError as error:
        raise InputError(f"{root}/{name} cannot be read: {error}") from error
    if len(data) > most:
        raise InputError(f"{root}/{name} is too large", expected=f"at most {most} bytes")
    return data
