"""The encode step: rows named by their content, checked on every read, and rebuilt where they are damaged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import ArtifactError, TrainingError
from components.contracts.recipe import Autoencoder
from components.data.world import WorldSpec
from components.models.autoencoder import load_autoencoder, make_autoencoder
from components.runtime.storage import Artifact, Outcome, Store
from components.training.encoding import Job, Spread, encode_piece, encode_table, find_known
from components.training.latents import require_multiple, side_of
from components.training.moments import LATENT_SCHEMA, damaged_row, key_of
from components.training.samples import load_latents, load_pictures
from tests.components.training.datasets import make_dataset


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("autoencoder")
    make_autoencoder(Autoencoder(channels=(8, 16), norm_groups=4), 16).save_pretrained(folder)
    yield folder
    torch.set_num_threads(threads)  # which encoding sets to one


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(str(tmp_path_factory.mktemp("store")))
    return make_dataset(store, WorldSpec(image_size=16), 150, buckets=((16, 16), (24, 8)))[0]


def piece_of(dataset: Artifact) -> dict[str, Any]:
    path = dataset.paths("data/")[0]
    return {"path": str(path), "name": path.name}


@pytest.fixture
def job(model: Path, tmp_path: Path) -> Job:
    return Job(str(model), "a" * 64, str(tmp_path))


def test_moments_are_those_of_the_autoencoder(dataset: Artifact, job: Job, tmp_path: Path) -> None:
    for path in dataset.paths("data/"):
        encode_piece({"path": str(path), "name": path.name}, job)
    mean, logvar = load_latents(tmp_path, 4)
    pictures, autoencoder = load_pictures(dataset.local()), load_autoencoder(Path(job.autoencoder))
    assert [b.shape[1:] for b in mean.blocks] == [(4, 4, 12), (4, 8, 8)] and mean.sizes == pictures.sizes
    for bucket, block in enumerate(pictures.blocks):
        pixels = torch.from_numpy(block).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            expected = autoencoder.encode(pixels).latent_dist
        assert torch.allclose(mean.blocks[bucket], expected.mean, atol=2e-3)
        assert torch.allclose(logvar.blocks[bucket], expected.logvar, atol=2e-2, rtol=2e-3)


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(range(75)), kept=st.integers(1, 75))
def test_a_rows_bytes_do_not_depend_on_its_neighbours(
    dataset: Artifact, model: Path, order: list[int], kept: int
) -> None:
    rows = pq.read_table(dataset.paths("data/")[0])
    autoencoder, keys = load_autoencoder(model), [bytes([i]) * 32 for i in range(75)]
    torch.set_num_threads(1)
    whole = encode_table(autoencoder, rows, keys, {}).to_pylist()
    chosen = order[:kept]
    part = encode_table(autoencoder, rows.take(chosen), [keys[i] for i in chosen], {})
    assert part.to_pylist() == [whole[i] for i in chosen]


def test_a_key_names_picture_transform_autoencoder_and_size() -> None:
    keys = {
        key_of(pixels, *size, autoencoder)
        for pixels in (bytes(96), bytes([1]) * 96)
        for size in ((4, 8), (8, 4))
        for autoencoder in ("a", "b")
    }
    assert len(keys) == 8 and key_of(bytes(96), 4, 8, "a") in keys


def test_known_rows_are_taken_over_and_damaged_ones_are_not(dataset: Artifact, job: Job, tmp_path: Path) -> None:
    piece = piece_of(dataset)
    first = encode_piece(piece, job)
    assert (first["reused"], first["rows"]) == (0, 75)
    done = tmp_path / "data" / piece["name"]
    again = replace(job, target=str(tmp_path / "again"), known=(str(done),))
    assert encode_piece(piece, again) == first | {"reused": 75}
    assert (tmp_path / "again" / "data" / piece["name"]).read_bytes() == done.read_bytes()
    other = replace(job, target=str(tmp_path / "other"), known=(str(done),), digest="b" * 64)
    assert encode_piece(piece, other)["reused"] == 0

    rows = pq.read_table(done).to_pylist()
    rows[7]["mean"] = bytes(len(rows[7]["mean"]))
    pq.write_table(pa.Table.from_pylist(rows, schema=LATENT_SCHEMA), tmp_path / "wrong.parquet")
    assert sorted(set(range(75)) - set(find_known([r["key"] for r in rows], [str(tmp_path / "wrong.parquet")]))) == [7]


def test_what_a_killed_run_left_is_kept_only_if_it_is_whole(dataset: Artifact, job: Job, tmp_path: Path) -> None:
    piece = piece_of(dataset)
    made = encode_piece(piece, job)
    path = tmp_path / "data" / piece["name"]
    whole, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert encode_piece(piece, job) == made | {"reused": 75} and path.stat().st_mtime_ns == stamp
    draws = random.Random(5)
    places = [0, len(whole) - 1, *(draws.randrange(len(whole)) for _ in range(40))]
    damaged = [whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :] for place in places]
    for data in [*damaged, whole[:-9], b"", whole + b"x"]:
        path.write_bytes(data)
        assert encode_piece(piece, job) == made
        assert path.read_bytes() == whole


def test_damaged_latents_are_not_trained_on(dataset: Artifact, job: Job, tmp_path: Path) -> None:
    piece = piece_of(dataset)
    encode_piece(piece, job)
    path = tmp_path / "data" / piece["name"]
    table = pq.read_table(path)
    assert damaged_row(table) is None
    row = table["split"].to_pylist().index("train")
    values = table["logvar"].to_pylist()
    values[row] = values[row][:-1] + bytes([values[row][-1] ^ 1])
    pq.write_table(table.set_column(table.schema.get_field_index("logvar"), "logvar", pa.array(values)), path)
    with pytest.raises(ArtifactError, match=f"latents of {table['id'][row].as_py()} do not match"):
        load_latents(tmp_path, 4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 9))
def test_spread_is_that_of_all_values_at_once(parts: list[int], seed: int) -> None:
    draws, total = np.random.default_rng(seed), Spread()
    means, logvars = [], []
    for count in [*parts, 1]:
        mean, logvar = (draws.normal(3, 2, (count, 8)).astype("<f2") for _ in range(2))
        means.append(mean)
        logvars.append(logvar)
        rows = {
            "split": ["train"] * count,
            "mean": [m.tobytes() for m in mean],
            "logvar": [v.tobytes() for v in logvar],
        }
        schema = pa.schema([("split", pa.string()), ("mean", pa.binary()), ("logvar", pa.binary())])
        total.add(Spread.of(pa.Table.from_pydict(rows, schema=schema)))
    whole, spreads = (np.concatenate(x).astype(np.float64) for x in (means, logvars))
    assert total.scaling == pytest.approx((whole.var() + np.exp(spreads).mean()) ** -0.5, rel=1e-6)


def test_no_variance_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="variance 0"):
        _ = Spread().scaling


def test_sides_that_do_not_fit_a_network_are_refused(dataset: Artifact, tmp_path: Path) -> None:
    assert side_of(dataset) == 16
    require_multiple(dataset, 8, "autoencoder")
    with pytest.raises(TrainingError, match=r"24x8 pixels.*multiples of 16, for the denoiser"):
        require_multiple(dataset, 16, "denoiser")
    empty = Store(str(tmp_path)).draft("dataset", {}, {})
    (empty.dir / "data").mkdir()
    none = {"height": pa.array([], pa.int32()), "width": pa.array([], pa.int32()), "split": pa.array([], pa.string())}
    pq.write_table(pa.table(none), empty.dir / "data" / "part-00000.parquet")
    with pytest.raises(TrainingError, match="holds no pictures"):
        side_of(empty.commit(Outcome()))
