"""What training reads of a dataset, and that a batch is of one bucket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import ArtifactError
from components.data.world import WorldSpec
from components.models.text_encoder import load_tokenizer
from components.runtime.storage import Artifact, Store
from components.training.order import Order
from components.training.samples import Buckets, load_captions, load_ids, load_pictures
from tests.components.training.datasets import make_dataset

SIZES = ((16, 16), (24, 8), (8, 24))  # width, height


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, dict[str, dict[str, object]]]:
    store = Store(str(tmp_path_factory.mktemp("store")))
    dataset, rows = make_dataset(store, WorldSpec(image_size=16), 47, buckets=SIZES)
    return dataset, {str(row["id"]): row for row in rows}


def test_pictures_captions_and_ids_are_in_one_order(made: tuple[Artifact, dict[str, dict[str, object]]]) -> None:
    dataset, rows = made
    ids, pictures = load_ids(dataset.local()), load_pictures(dataset.local())
    tokenizer = load_tokenizer(dataset.local() / "tokenizer")
    captions = load_captions(dataset.local(), tokenizer)
    assert sorted(ids) == sorted(name for name, row in rows.items() if row["split"] == "train")
    assert len(ids) == len(pictures) == len(captions) and [b.shape[1:3] for b in pictures.blocks] == [
        (8, 24), (16, 16), (24, 8)
    ]  # fmt: skip
    for i, name in enumerate(ids):
        row = rows[name]
        assert pictures.take(np.array([i])).tobytes() == row["pixels"], name
        tokens = row["tokens"]
        assert isinstance(tokens, list) and captions[i][: len(tokens)].tolist() == tokens


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 99))
def test_every_batch_of_an_order_can_be_taken(sizes: list[int], batch: int, seed: int) -> None:
    blocks = [np.full((n, bucket + 1), 7 * bucket, np.uint8) for bucket, n in enumerate(sizes)]
    arrays, tensors = Buckets(blocks), Buckets([torch.from_numpy(b) for b in blocks])
    order = Order(arrays.sizes, batch, seed)
    for step in range(20):
        indices = order.batch(step)
        taken = arrays.take(indices)
        assert taken.shape == (batch, *arrays.shape(indices)) and len(np.unique(taken)) == 1
        assert np.array_equal(tensors.take(indices).numpy(), taken)


def test_a_batch_of_two_buckets_is_no_batch() -> None:
    with pytest.raises(AssertionError, match="one bucket only"):
        Buckets([np.zeros((3, 1), np.uint8), np.zeros((3, 2), np.uint8)]).take(np.array([2, 3]))


def test_pixels_of_another_size_than_the_row_says_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = {"split": ["train"] * 2, "height": [2, 2], "width": [3, 3], "pixels": [bytes(18), bytes(17)]}
    pq.write_table(pa.table(rows), tmp_path / "data" / "part-00000.parquet")
    with pytest.raises(ArtifactError, match=r"17 bytes.*18 for 3x2"):
        load_pictures(tmp_path)
