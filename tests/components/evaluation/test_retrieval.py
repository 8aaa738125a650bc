"""Recall@k and R-precision of an encoder, against counting in loops."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluation.metrics import has_rivals, retrieved
from components.evaluation.retrieval import encoder_measures, ranks


def _units(draws: np.random.Generator, n: int, width: int = 5) -> npt.NDArray[np.float64]:
    rows = draws.normal(size=(n, width))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(1, 4), min_size=2, max_size=8))
def test_ranks_are_those_that_counting_finds(seed: int, counts: list[int]) -> None:
    draws = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(counts)), counts)
    keys = [f"meaning {k}" for k in draws.integers(0, len(owners), len(owners))]  # some say the same
    images, texts = _units(draws, len(counts)), _units(draws, len(owners))
    to_text, to_image = ranks(images, texts, owners, keys)
    for i, image in enumerate(images):
        mine = {keys[j] for j in range(len(owners)) if owners[j] == i}
        best = max(float(image @ texts[j]) for j in range(len(owners)) if keys[j] in mine)
        worse = [j for j in range(len(owners)) if keys[j] not in mine and float(image @ texts[j]) >= best]
        assert to_text[i] == len(worse)
    for j, text in enumerate(texts):
        fits = {int(owners[k]) for k in range(len(owners)) if keys[k] == keys[j]}
        best = max(float(images[i] @ text) for i in fits)
        assert to_image[j] == sum(float(images[i] @ text) >= best for i in range(len(images)) if i not in fits)


def test_a_perfect_encoder_a_blind_one_and_chance() -> None:
    draws = np.random.default_rng(0)
    owners = np.repeat(np.arange(60), 3)
    keys = [f"caption {j}" for j in range(180)]
    images = _units(draws, 60, 32)
    perfect = encoder_measures(images, images[owners], owners, keys)
    assert {e.value for e in perfect.values()} == {1.0} and perfect["r_precision"].n == 60
    blind = encoder_measures(np.ones((60, 4)), np.ones((180, 4)), owners, keys)  # a tie is no hit
    assert {e.value for e in blind.values()} == {0.0}
    chance = encoder_measures(images, _units(draws, 180, 32), owners, keys)
    assert chance["r_precision"].value < 0.06  # one in a hundred
    assert 0.03 < chance["text_to_image_recall_at_10"].value < 0.35  # ten in sixty
    assert chance["image_to_text_recall_at_10"].value >= chance["image_to_text_recall_at_5"].value


def test_no_caption_of_a_picture_is_a_mismatch_to_it() -> None:
    """The picture's other caption is nearer than the true one and still no rival."""
    images = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[0.9, 0.1], [1.0, 0.0], [0.0, 1.0]])
    keys, pictures = ["a", "b", "c"], ["one", "one", "two"]
    alone, _ = retrieved(images, texts, keys, 100, 0)
    together, most = retrieved(images, texts, keys, 100, 0, pictures)
    assert alone.tolist() == [False, True, True] and together.tolist() == [True, True, True] and most == 3


def test_a_picture_that_says_everything_has_no_rivals() -> None:
    assert has_rivals(["a", "b"]) and not has_rivals(["a", "a"])
    assert not has_rivals(["a", "b", "a"], ["one", "one", "two"]) and not has_rivals([])
    with pytest.raises(ValueError, match="says all of them"):
        retrieved(np.eye(2), np.eye(2), ["a", "b"], 100, 0, ["one", "one"])
    found = encoder_measures(np.eye(2), np.eye(2)[[0, 0, 1]], np.array([0, 0, 1]), ["a", "b", "a"])
    assert "r_precision" not in found and found["image_to_text_recall_at_1"].value == 1.0
