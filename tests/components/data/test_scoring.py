"""The pass over the bytes, and the reader of what it wrote."""

from __future__ import annotations

import hashlib
import io
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from components.contracts.errors import ArtifactError, RecipeError
from components.contracts.recipe import Recipe
from components.data.scores import PIXEL_SCHEMA, SCORE_SCHEMA, Part, Scores
from components.data.scoring import _score_piece, score
from components.data.shards import Sample, tar_bytes
from components.runtime.cluster import ray_session
from components.runtime.stage import Context
from components.runtime.storage import Artifact, Outcome, write_bytes

SIZES = [(64, 64), (80, 48), (48, 80)]
SHAPES = [(90, 90), (150, 90), (90, 150), (100, 80)]  # of the samples, in turn


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize(SHAPES[number % len(SHAPES)], Image.Resampling.BICUBIC)


def sample(number: int, *, damaged: bool = False, caption: str | None = None) -> Sample:
    out = io.BytesIO()
    picture(number).save(out, "PNG")
    data = out.getvalue()[:60] if damaged else out.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    width, height = picture(number).size
    key = f"{number:09d}"
    meta = {
        "key": key, "row": number, "url": f"http://a.example/{number}", "caption": caption or f" picture\n{number} ",
        "sha256": sha256, "original_width": 2 * width, "original_height": 2 * height,
        "width": width, "height": height, "quality": 100,
    }  # fmt: skip
    return Sample(key, "png", data, meta)


def scored(folder: str, shards: list[list[Sample]], **models: Any) -> list[Part]:
    """Shards written and scored in this process, as a worker does it."""
    parts = []
    for n, samples in enumerate(shards):
        name = f"{n:05d}"
        write_bytes(f"{folder}/shards/{name}.tar", tar_bytes(samples))
        piece = {"shard": f"{folder}/shards/{name}.tar", "name": name, "url": folder, "sizes": SIZES}
        piece |= {"max_pixels": 1_000_000, "clip": None, "aesthetic": None, "embedding": None, **models}
        assert _score_piece(piece) == {"samples": len(samples)}
        parts.append(Part(n, f"{folder}/scores/{name}.parquet", f"{folder}/pixels/{name}.parquet"))
    return parts


@pytest.fixture(scope="module")
def shards() -> list[list[Sample]]:
    samples = [sample(n, damaged=n in (2, 9)) for n in range(12)]
    return [samples[:5], samples[5:]]


@pytest.fixture(scope="module")
def parts(shards: list[list[Sample]], tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    return scored(str(tmp_path_factory.mktemp("scores")), shards, embedding="atelier")


def test_every_sample_has_its_row_and_damaged_ones_have_nulls(parts: list[Part]) -> None:
    rows = [row for part in parts for row in pq.read_table(part.scores).to_pylist()]
    assert pq.read_schema(parts[0].scores).equals(SCORE_SCHEMA) and pq.read_schema(parts[0].pixels).equals(PIXEL_SCHEMA)
    assert [row["row"] for row in rows] == list(range(12))
    known = {"row", "url", "caption", "clean", "sha256", "id", "width", "height", "quality"}
    known |= {"language_confidence", "words", "characters", "repetition", "personal"}
    for row in rows:
        n = row["row"]
        assert (row["caption"], row["clean"], row["words"]) == (f" picture\n{n} ", f"picture {n}", 2)
        nulls = {name for name, value in row.items() if value is None}
        if n in (2, 9):
            assert nulls | {"language"} == set(SCORE_SCHEMA.names) - known | {"language"}
        else:
            assert nulls - {"language"} == {"clip_similarity", "aesthetic"}
            assert (row["kept_width"], row["kept_height"]) == SHAPES[n % 4]
            assert (row["width"], row["height"]) == tuple(2 * side for side in SHAPES[n % 4])


def test_the_reader_gives_columns_in_order(parts: list[Part], shards: list[list[Sample]]) -> None:
    scores = Scores(parts)
    samples = [s for shard in shards for s in shard]
    assert len(scores) == 12 and scores.sources.tolist() == [0] * 5 + [1] * 7
    assert scores.urls.to_pylist() == [s.meta["url"] for s in samples]
    assert scores.captions.to_pylist() == [f"picture {n}" for n in range(12)]
    assert scores.sha256.to_pylist() == [s.meta["sha256"] for s in samples]
    assert np.flatnonzero(~scores.decoded).tolist() == [2, 9] and scores.pixel_sha256.null_count == 2
    ids = [hashlib.sha256(f"{s.meta['sha256']}picture {n}".encode()).hexdigest()[:16] for n, s in enumerate(samples)]
    assert scores.id_texts(np.arange(12)) == ids
    assert np.argsort(scores.ids).tolist() == sorted(range(12), key=lambda n: ids[n])
    assert scores.widths.tolist()[:3] == [180, 300, 180] and scores.quality.tolist() == [100] * 12
    assert np.isnan(scores.numbers("sharpness")).nonzero()[0].tolist() == [2, 9]
    assert scores.texts("bucket").to_pylist()[:2] == ["64x64", "80x48"]


def test_thumbs_sketches_and_embeddings_come_at_any_positions(parts: list[Part]) -> None:
    from components.data.embedding import load
    from components.data.sketches import sketch

    scores, at = Scores(parts), np.array([11, 2, 0, 11, 7])
    for n, thumb in zip(at, scores.thumbs(at), strict=True):
        expected = np.asarray(picture(n).resize((16, 16), Image.Resampling.BOX)) * (n != 2)
        assert np.array_equal(thumb, expected)
    assert [row.tobytes() for row in scores.sketches(at[:1])] == [sketch(picture(11))]
    expected = load("atelier").embed([picture(11), picture(0)])
    assert np.array_equal(scores.embeddings(np.array([11, 0])), expected)
    assert not scores.embeddings(np.array([2])).any() and not scores.sketches(np.array([9])).any()
    assert scores.thumbs(np.array([], dtype=np.int64)).shape == (0, 16, 16, 3)


def test_pixels_are_cut_to_the_nearest_bucket_and_stream_in_order(parts: list[Part]) -> None:
    scores = Scores(parts)
    at = np.array([0, 1, 2, 4, 7, 11])
    found = list(scores.pixels(at))
    for n, pixels in zip(at, found, strict=True):
        size = [(64, 64), (80, 48), (48, 80), (80, 48) if (100 / 80) ** 2 > 80 / 48 else (64, 64)][n % 4]
        expected = None if n == 2 else ImageOps.fit(picture(n), size, Image.Resampling.LANCZOS).tobytes()
        assert pixels == expected
    assert list(scores.pixels(np.array([], dtype=np.int64))) == []


def test_pixels_of_many_row_groups_come_in_order(tmp_path: Path) -> None:
    samples = [sample(n) for n in range(15)]
    parts = scored(str(tmp_path), [samples], sizes=[(1024, 1024)])
    assert pq.ParquetFile(parts[0].pixels).num_row_groups == 3  # of at most 16 MB
    every = list(Scores(parts).pixels(np.arange(15)))
    assert every[13] == ImageOps.fit(picture(13), (1024, 1024), Image.Resampling.LANCZOS).tobytes()
    for at in ([0, 14], [3, 4, 5, 9, 10]):
        assert list(Scores(parts).pixels(np.array(at))) == [every[n] for n in at]


def test_pixels_of_other_rows_are_refused(shards: list[list[Sample]], tmp_path: Path) -> None:
    first, second = scored(str(tmp_path), shards)
    with pytest.raises(ArtifactError, match="does not hold the rows"):
        list(Scores([Part(0, first.scores, second.pixels)]).pixels(np.array([0])))


def test_scores_of_another_model_do_not_mix(shards: list[list[Sample]], parts: list[Part], tmp_path: Path) -> None:
    plain = scored(str(tmp_path), shards)
    with pytest.raises(ArtifactError, match=r"no embeddings.*prepare\.embedding"):
        Scores(plain).embeddings(np.array([0]))
    table = pq.read_table(parts[0].scores)
    short = [None if e is None else e[:3] for e in table["embedding"].to_pylist()]
    column = SCORE_SCHEMA.get_field_index("embedding")
    field = SCORE_SCHEMA.field("embedding")
    other = tmp_path / "other.parquet"
    halves = [None if e is None else np.array(e, dtype=np.float16) for e in short]
    pq.write_table(table.set_column(column, field, pa.array(halves, type=field.type)), other)
    with pytest.raises(ArtifactError, match="differ in length"):
        Scores([parts[0], Part(1, str(other), "")]).embeddings(np.array([0]))


def test_a_remote_store_gives_the_same(parts: list[Part], shards: list[list[Sample]]) -> None:
    folder = f"memory://scores-{uuid.uuid4()}"
    remote = scored(folder, shards, embedding="atelier")
    for ours, theirs in zip(parts, remote, strict=True):
        for name in ("scores", "pixels"):
            assert fsspec.open(getattr(theirs, name), "rb").open().read() == Path(getattr(ours, name)).read_bytes()
    at = np.array([1, 6, 9])
    assert list(Scores(remote).pixels(at)) == list(Scores(parts).pixels(at))
    assert Scores(remote).urls.equals(Scores(parts).urls)


def test_no_samples_at_all() -> None:
    scores = Scores([])
    assert len(scores) == 0 and scores.urls.to_pylist() == [] and list(scores.pixels(np.array([], dtype=int))) == []
    assert scores.numbers("sharpness").shape == (0,) and scores.thumbs(np.array([], dtype=int)).shape == (0, 16, 16, 3)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with ray_session(Recipe(name="scoring", run={"object_store_mb": 100}).run):
        yield


def context(home: Path, prepare: dict[str, Any] | None = None, **run: Any) -> Context:
    run = {"root": str(home), "object_store_mb": 100, **run}
    return Context.of(Recipe.model_validate({"name": "scoring", "prepare": prepare or {}, "run": run}))


def collection(ctx: Context, shards: list[list[Sample]]) -> Artifact:
    draft = ctx.store.draft("collection", {}, {"max_pixels": 1_000_000})
    for n, samples in enumerate(shards):
        write_bytes(f"{draft.url}/shards/{n:05d}.tar", tar_bytes(samples))
    return draft.commit(Outcome(counts={"success": sum(map(len, shards))}))


@pytest.mark.integration
def test_scores_are_made_once_whatever_the_workers_and_a_killed_run_goes_on(
    ray: None, shards: list[list[Sample]], tmp_path: Path
) -> None:
    ctx = context(tmp_path, {"buckets": [1.0, 1.5], "image_size": 64})
    scores = score(ctx, collection(ctx, shards))
    assert scores.manifest.kind == "scores" and scores.manifest.counts == {"samples": 12, "decoded": 10}
    assert sorted(scores.manifest.files) == [f"{k}/0000{n}.parquet" for k in ("pixels", "scores") for n in (0, 1)]
    alone = context(tmp_path / "alone", {"buckets": [1.0, 1.5], "image_size": 64}, cpus=1)
    assert score(alone, collection(alone, shards)).digest == scores.digest
    # thresholds are not of the scores' identity; what is measured is
    assert (
        score(context(tmp_path, {"buckets": [1.0, 1.5], "image_size": 64, "min_side": 90}), _only(ctx)).url
        == scores.url
    )
    assert score(context(tmp_path), _only(ctx)).url != scores.url
    # as a kill leaves it: no manifest, one shard without its scores, one file half written
    before = (Path(scores.url) / "scores" / "00000.parquet").stat().st_mtime_ns
    for name in ("manifest.json", "scores/00001.parquet"):
        (Path(scores.url) / name).unlink()
    (Path(scores.url) / "scores" / ".tmp-dead").write_bytes(b"half")
    assert score(ctx, _only(ctx)).digest == scores.digest
    assert (Path(scores.url) / "scores" / "00000.parquet").stat().st_mtime_ns == before
    table = Scores.of([scores, scores])
    assert len(table) == 24 and table.sources.tolist() == [0] * 12 + [1] * 12
    shutil.rmtree(scores.url)


def _only(ctx: Context) -> Artifact:
    (found,) = ctx.store.list("collection")
    return found


def test_a_model_that_is_not_there_stops_before_any_work(shards: list[list[Sample]], tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for rules, words in (
        ({"clip": str(folder)}, "prepare.clip.*holds no config.json"),
        ({"aesthetic": str(folder)}, "prepare.aesthetic.*holds no config.json"),
        ({"embedding": str(folder)}, "prepare.embedding"),
        ({"min_clip_similarity": 0.2}, r"prepare\.min_clip_similarity is set, but prepare\.clip is null"),
        ({"min_aesthetic": 5}, r"prepare\.min_aesthetic is set, but prepare\.aesthetic is null"),
    ):
        ctx = context(tmp_path, rules)
        with pytest.raises(RecipeError, match=words):
            score(ctx, collection(ctx, shards))
        assert ctx.store.list("scores") == []
