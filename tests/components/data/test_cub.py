"""CUB-200-2011 in the layout of AttnGAN and DM-GAN, from the folder to a dataset with splits and all captions."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest

from components.contracts.errors import InputError
from components.contracts.recipe import Collect, Recipe
from components.data import sources
from components.data.annotations import FILE
from components.data.collecting import collect
from components.data.cub import SCHEMA, read_cub
from components.data.forgetting import forget
from components.data.pictures import box_of, normalise
from components.data.preparing import prepare
from components.data.shards import read_tar
from components.data.takedown import rule
from components.runtime.stage import Context
from components.runtime.storage import Artifact
from tests.components.data.literature import captions_of, make_birds, name_of


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_bird_with_its_captions_and_its_split(tmp_path: Path, protocol: int) -> None:
    birds = read_cub(str(make_birds(tmp_path / "bi rds", protocol=protocol)))
    assert birds.schema == SCHEMA and birds.num_rows == 12
    for number, row in enumerate(birds.to_pylist()):
        assert unquote(row["url"]).endswith(f"/bi rds/CUB_200_2011/images/{name_of(number)}.jpg")
        assert [row["caption"], *row["alternatives"]] == captions_of(number)
        assert row["split"] == ("train" if number < 8 else "holdout")


def test_what_is_missing_is_listed_all_the_same(tmp_path: Path) -> None:
    birds = make_birds(tmp_path, train=2, test=1)
    (birds / "text" / f"{name_of(0)}.txt").unlink()
    (birds / "text" / f"{name_of(1)}.txt").write_bytes("a bird\ufffd\ufffdwith a  beak\r\n\r\na bird\n".encode())
    (birds / "test" / "filenames.pickle").unlink()
    first, second = read_cub(str(birds)).to_pylist()
    assert first["caption"] == "" and first["alternatives"] == [] and first["split"] is None  # one pickle, no split
    assert [second["caption"], *second["alternatives"]] == ["a bird with a beak", "a bird"]


def test_the_layout_of_cocos_pictures(tmp_path: Path) -> None:
    birds = make_birds(tmp_path, train=2, test=1)
    (birds / "CUB_200_2011" / "images").rename(birds / "images")
    assert all("/images/0" in url for url in read_cub(str(birds))["url"].to_pylist())


class _Program:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.folder,))


def test_a_pickle_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    birds = make_birds(tmp_path / "birds", train=2, test=1)
    data = pickle.dumps([name_of(0), _Program(str(tmp_path / "made"))])
    (birds / "train" / "filenames.pickle").write_bytes(data)
    with pytest.raises(InputError, match=r"train/filenames.pickle.*nothing in it was run"):
        read_cub(str(birds))
    assert not (tmp_path / "made").exists()


def test_another_layout_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no train/filenames.pickle"):
        read_cub(str(tmp_path))
    birds = make_birds(tmp_path / "birds", train=2, test=1)
    (birds / "test" / "filenames.pickle").write_bytes(pickle.dumps([name_of(0)]))
    with pytest.raises(InputError, match="of train and of test"):
        read_cub(str(birds))
    (birds / "test" / "filenames.pickle").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="not a list of names"):
        read_cub(str(birds))
    (birds / "test" / "filenames.pickle").unlink()
    (birds / "CUB_200_2011" / "bounding_boxes.txt").write_text("1 3 4\n")
    with pytest.raises(InputError, match="no box for picture 1"):
        read_cub(str(birds), crop=True)
    with pytest.raises(ValueError, match="crop needs layout cub"):
        Collect(files="x", crop=True)
    with pytest.raises(ValueError, match="layout cub is one of files"):
        Collect(layout="cub")


def test_the_crop_is_the_square_around_the_bird(tmp_path: Path) -> None:
    """AttnGAN's: the middle of the box, and 0.75 of its longer side to each side of it."""
    import io

    import numpy as np
    from PIL import Image

    birds = make_birds(tmp_path, train=1, test=1)
    url = read_cub(str(birds), crop=True)["url"][0].as_py()
    assert url.endswith("#xywh=53,28,44,44") and box_of(url) == (53, 28, 44, 44)
    body = (birds / "CUB_200_2011" / "images" / f"{name_of(0)}.jpg").read_bytes()
    kept = normalise(body, Collect(image_size=44), box_of(url))
    assert (kept.width, kept.height, kept.original_width) == (44, 44, 160)
    pixels = np.asarray(Image.open(io.BytesIO(kept.data)).convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1:] < 60).all(-1)
    rows, columns = np.flatnonzero(red.mean(1) > 0.5), np.flatnonzero(red.mean(0) > 0.4)
    assert abs(rows[0] - 12) <= 1 and abs(len(rows) - 20) <= 2  # the box begins 12 below the crop and is 20 high
    assert abs(columns[0] - 7) <= 1 and abs(len(columns) - 30) <= 2
    wide = normalise(body, Collect(image_size=64), (100, 60, 500, 500))  # as far as the picture reaches
    assert (wide.width, wide.height) == (60, 60)
    outside = normalise(body, Collect(image_size=64), (400, 400, 5, 5))
    assert (outside.width, outside.height) == (85, 64)


def _rows(dataset: Artifact) -> list[dict[str, Any]]:
    return [row for path in dataset.paths("data/") for row in pq.read_table(path).to_pylist()]


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_from_the_folder_to_a_dataset(tmp_path: Path) -> None:
    """Through collect and prepare: the split of the pickles, all captions, and a takedown that takes them along."""
    birds = make_birds(tmp_path / "birds")
    # a training picture once more in the test set: its cluster is held out
    copy = birds / "CUB_200_2011" / "images" / f"{name_of(11)}.jpg"
    copy.write_bytes((birds / "CUB_200_2011" / "images" / f"{name_of(7)}.jpg").read_bytes())
    (birds / "text" / f"{name_of(3)}.txt").write_text("bird 3\nwrite to joe@example.com\n" + "long " * 90 + "\n")
    recipe = Recipe.model_validate({
        "name": "birds",
        "collect": {"files": str(birds), "layout": "cub", "crop": True, "image_size": 44},
        "prepare": {"image_size": 32, "min_rows": 5, "alternatives": True, "near_duplicates": False},
        "run": {"root": str(tmp_path / "runs"), "object_store_mb": 200},
    })  # fmt: skip
    ctx = Context.of(recipe)
    with sources.opened(recipe) as source:
        collection = collect(ctx, source.urls, source.allow_hosts, source.files)
    sizes = {(s.meta["width"], s.meta["height"]) for s in read_tar(collection.path("shards/00000.tar"))}
    assert sizes == {(44, 44)} and collection.manifest.counts["success"] == 12
    dataset = prepare(ctx, [collection])
    by_number = {int(row["url"].rpartition("_")[0].rpartition("_")[2]): row for row in _rows(dataset)}
    assert sorted(by_number) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    held = {number for number, row in by_number.items() if row["split"] == "holdout"}
    assert held == {7, 8, 9, 10}
    assert [by_number[2]["caption"], *by_number[2]["alternatives"]] == sorted(captions_of(2))
    assert by_number[3]["alternatives"] == ["write to [email]"]  # redacted, and the long one left out
    assert set(captions_of(11)[:1]) <= set(by_number[7]["alternatives"])  # of the dropped copy
    # the vocabulary was learned from all captions of the training pictures
    tokenizer = dataset.path("tokenizer/tokenizer.json").read_text()
    assert "wings" in tokenizer

    forget(ctx, [rule("url", by_number[2]["url"])])
    left = pq.read_table(ctx.store.list("collection")[0].path(FILE)).to_pylist()
    assert left[2] == {"row": 2, "alternatives": None, "split": None} and left[1]["split"] == "train"
    assert len(_rows(ctx.store.list("dataset")[0])) == 10

    silent = Context.of(
        recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"alternatives": False})})
    )
    with sources.opened(recipe) as source:
        again = collect(silent, source.urls, source.allow_hosts, source.files)
    assert all(row["alternatives"] is None for row in _rows(prepare(silent, [again])))
