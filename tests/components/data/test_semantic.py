"""The semantic tier: complete against brute force, the same however the work is cut, and precise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.contracts.recipe import Prepare, Run
from components.data import semantic
from components.data.clusters import Forest
from components.data.neighbours import LENGTH, rounded
from components.data.semantic import candidates, confirmed, semantic_pairs, similarity_of, upheld
from components.data.sketches import sketch
from tests.benchmarks.data_semantic import score_pictures
from tests.benchmarks.perturbations import CHANGES
from tests.components.data.test_verifying import clock, photograph

RUN = Run(object_store_mb=200)


def rules(**settings: Any) -> Prepare:
    return Prepare(embedding="atelier", semantic=settings)


def components(n: int, pairs: np.ndarray) -> list[int]:
    forest = Forest(n)
    forest.link(pairs[:, 0], pairs[:, 1])
    return forest.labels().tolist()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, np.ndarray]:
    """Scores of 12 photographs with some copies each, and which original each is of."""
    rng = np.random.default_rng(0)
    images, of = list[Image.Image](), list[int]()
    for number in range(12):
        image = photograph(number)
        images += [
            image,
            *(CHANGES[name](image, rng) for name in ("10% crop", "5% border", "mirror", "gamma")[: number % 5]),
        ]
        of += [number] * (len(images) - len(of))
    return score_pictures(images, tmp_path_factory.mktemp("scores")), np.array(of)


def test_copies_are_tied_and_nothing_else(family: tuple[Any, np.ndarray]) -> None:
    scores, of = family
    pairs = semantic_pairs(scores, np.arange(len(of)), rules(), RUN)
    first = [int(np.flatnonzero(of == o)[0]) for o in of]
    assert components(len(of), pairs) == first
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_pairs_are_positions_of_the_scores_and_known_ones_are_left_alone(family: tuple[Any, np.ndarray]) -> None:
    scores, of = family
    at = np.flatnonzero(of >= 6)
    pairs = semantic_pairs(scores, at, rules(), RUN)
    assert set(pairs.ravel().tolist()) <= set(at.tolist())
    assert (of[pairs[:, 0]] == of[pairs[:, 1]]).all() and len(pairs) >= len(at) - 6
    assert len(semantic_pairs(scores, at, rules(), RUN, known=of[at])) == 0
    assert len(semantic_pairs(scores, at[:0], rules(), RUN)) == 0


def test_without_verifying_similarity_alone_decides(family: tuple[Any, np.ndarray]) -> None:
    scores, of = family
    at = np.arange(len(of))
    pairs = semantic_pairs(scores, at, rules(verify=False, similarity=0.3, neighbours=100), RUN)
    vectors = rounded(scores.embeddings(at)).astype(np.int64)
    i, j = np.triu_indices(len(at), 1)
    close = (vectors[i] * vectors[j]).sum(axis=1) >= 0.3 * LENGTH**2
    assert [tuple(p) for p in pairs.tolist()] == list(zip(i[close].tolist(), j[close].tolist(), strict=True))
    assert (of[pairs[:, 0]] != of[pairs[:, 1]]).any()


def crowd(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n // 4, 48))[rng.integers(0, n // 4, n)]
    return (points + 0.2 * rng.normal(size=points.shape)).astype(np.float16)


def test_cells_miss_next_to_nothing_of_brute_force() -> None:
    vectors, items = crowd(4000), np.arange(4000)
    order = np.random.default_rng(1).permutation(4000)
    every, _ = candidates(vectors, items, order, items, rules(similarity=0.9, neighbours=4000), RUN)
    cut, products = candidates(vectors, items, order, items, rules(similarity=0.9, neighbours=4000, clusters=60), RUN)
    truth, found = ({tuple(p) for p in pairs.tolist()} for pairs in (every, cut))
    assert found <= truth and len(truth) > 4000
    assert len(found) / len(truth) > 0.98
    assert (products >= 0.9 * LENGTH**2).all()


@pytest.mark.integration
def test_ray_and_any_number_of_workers_give_the_same_candidates(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "_TASK_ROWS", 700)
    vectors, items = crowd(3000), np.arange(3000)
    given = (vectors, items, np.random.default_rng(1).permutation(3000), items // 2, rules(similarity=0.9, clusters=30))
    here = candidates(*given, RUN)
    for cpus in (1, 2):
        there = candidates(*given, Run(cpus=cpus, object_store_mb=200), ray_rows=1)
        assert np.array_equal(here[0], there[0]) and np.array_equal(here[1], there[1])
    assert len(here[0]) > 1000


@pytest.mark.integration
def test_ray_confirms_the_same_clusters(
    local_ray: None, family: tuple[Any, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "_TASK_PAIRS", 16)
    scores, of = family
    at = np.arange(len(of))
    here = semantic_pairs(scores, at, rules(), RUN)
    there = semantic_pairs(scores, at, rules(), RUN, ray_rows=1)
    assert np.array_equal(here, there)
    assert np.array_equal(upheld(scores, at, of * 0, RUN), upheld(scores, at, of * 0, RUN, ray_rows=1))


def test_the_order_of_pairs_changes_no_component(family: tuple[Any, np.ndarray]) -> None:
    scores, of = family
    every = np.stack(np.triu_indices(len(of), 1), axis=1)
    first = [int(np.flatnonzero(of == o)[0]) for o in of]
    for seed in range(2):
        pairs = every[np.random.default_rng(seed).permutation(len(every))]
        assert components(len(of), confirmed(pairs, np.arange(len(of)), scores.sketches, RUN)) == first


def test_what_is_tied_already_is_not_compared(family: tuple[Any, np.ndarray]) -> None:
    scores, _ = family
    asked = 0

    def sketches(some: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(some)
        return np.asarray(scores.sketches(np.zeros_like(some)))  # all of one picture

    n = 60
    every = np.stack(np.triu_indices(n, 1), axis=1)
    assert set(components(n, confirmed(every, np.arange(n), sketches, RUN))) == {0}
    assert asked / 2 < 4 * n < len(every)
    asked = 0
    assert len(confirmed(every, np.zeros(n, dtype=np.int64), sketches, RUN)) == asked == 0


def test_look_alike_graphics_are_set_apart_again(tmp_path: Path) -> None:
    images = [clock(3), clock(3).resize((100, 100)), clock(4), clock(4), clock(7), photograph(1), photograph(2)]
    scores = score_pictures(images, tmp_path)
    at = np.arange(len(images))
    assert upheld(scores, at, np.array([0, 0, 0, 0, 0, 5, 5]), RUN).tolist() == [0, 0, 2, 2, 4, 5, 5]
    assert upheld(scores, at, at, RUN).tolist() == at.tolist()
    assert sketch(images[2]) == sketch(images[3])


def test_similarity_follows_the_model_unless_it_is_given() -> None:
    assert similarity_of(rules()) < similarity_of(Prepare(embedding="some/model")) == 0.96
    assert similarity_of(rules(similarity=0.9)) == 0.9
