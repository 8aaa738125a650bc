"""Several captions a picture: which one a step shows, and that nothing changes where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.world import WorldSpec
from components.models.text_encoder import load_tokenizer
from components.runtime.storage import Artifact, Store
from components.training.captions import Captions, load_all_captions
from components.training.samples import load_captions, load_ids
from tests.components.training.datasets import make_dataset


def _captions(counts: list[int], sampled: bool = True) -> Captions:
    """Caption ``k`` of sample ``i`` is the row ``[i, k]``."""
    first = torch.tensor([[i, 0] for i in range(len(counts))])
    others = torch.tensor([[i, k] for i, n in enumerate(counts) for k in range(1, n + 1)]).reshape(-1, 2)
    return Captions(first, others, np.array(counts, dtype=np.int64), sampled)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_every_sample_gets_one_of_its_own(counts: list[int], seed: int, data: st.DataObject) -> None:
    captions = _captions(counts)
    indices = np.array(data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=20)))
    rows = captions.rows(indices, torch.Generator().manual_seed(seed))
    chosen = captions.ids[torch.from_numpy(rows)]
    assert chosen[:, 0].tolist() == indices.tolist()
    assert all(k <= counts[i] for i, k in chosen.tolist())
    again = captions.rows(indices, torch.Generator().manual_seed(seed))
    assert np.array_equal(rows, again)  # of the step's seed alone, so the same on every rank and after a resume
    first = _captions(counts, sampled=False).rows(indices, torch.Generator().manual_seed(seed))
    assert captions.ids[torch.from_numpy(first)].tolist() == [[i, 0] for i in indices.tolist()]


def test_each_is_as_likely_as_the_others_and_one_alone_draws_nothing() -> None:
    captions, draws = _captions([3]), torch.Generator().manual_seed(1)
    shown = np.bincount(captions.rows(np.zeros(8000, np.int64), draws), minlength=4)
    assert abs(shown - 2000).max() < 200
    draws = torch.Generator().manual_seed(1)
    before = draws.get_state()
    assert _captions([0, 0]).rows(np.array([1, 0]), draws).tolist() == [1, 0]
    assert torch.equal(before, draws.get_state())  # trainings of one caption a picture stay what they were


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(str(tmp_path_factory.mktemp("store")))
    sizes = ((16, 16), (24, 8))
    return make_dataset(store, WorldSpec(image_size=16), 40, buckets=sizes, alternatives=True)[0]


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_all_captions_of_a_dataset_in_the_order_of_its_samples(dataset: Artifact, split: str) -> None:
    folder = dataset.local()
    tokenizer = load_tokenizer(folder / "tokenizer")
    captions = load_all_captions(folder, tokenizer, split)
    rows = {row["id"]: row for path in dataset.paths("data/") for row in pq.read_table(path).to_pylist()}
    ids, at = load_ids(folder, split), 0
    assert len(ids) == len(captions.counts)
    for name, count in zip(ids, captions.counts.tolist(), strict=True):
        said = [rows[name]["caption"], *(rows[name]["alternatives"] or ())]
        assert count == len(said)
        for text, row in zip(said, captions.ids[at : at + count], strict=True):
            expected = tokenizer(text, padding="max_length", max_length=24, truncation=True)["input_ids"]
            assert row.tolist() == expected
        at += count
    assert at == len(captions.ids)
    first = load_captions(folder, tokenizer, split)
    starts = _starts(captions)
    assert torch.equal(captions.ids[starts], first)


def _starts(captions: Captions) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(captions.counts)[:-1]]))


def test_text_states_are_of_all_captions(dataset: Artifact, tmp_path: Path) -> None:
    """Encoded once, row by row with the alternatives, they lie as the captions do."""
    from components.contracts.errors import ArtifactError
    from components.contracts.recipe import TextEncoder
    from components.models.text_encoder import load_clip, make_clip, text_states, text_tower
    from components.training.texts import Job, encode_piece, load_states

    folder, encoder = dataset.local(), tmp_path / "encoder"
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.save_pretrained(encoder / "tokenizer")
    torch.manual_seed(0)
    section = TextEncoder(width=16, layers=1, image_layers=1, heads=2)
    make_clip(section, tokenizer, 16).save_pretrained(encoder / "model")
    for path in dataset.paths("data/"):
        encode_piece({"path": str(path), "name": path.name}, Job(str(encoder), "d" * 64, str(tmp_path / "texts")))
    captions = load_all_captions(folder, tokenizer)
    named, states = load_states(tmp_path / "texts", 24, "train", len(captions.ids))
    assert named == load_ids(folder)
    expected = text_states(text_tower(load_clip(encoder / "model")), captions.ids)
    assert torch.allclose(states.float(), expected, atol=4e-3)
    with pytest.raises(ArtifactError, match=r"not of 7 captions"):
        load_states(tmp_path / "texts", 24, "train", 7)
