"""Aspect-ratio buckets."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.recipe import Recipe
from components.data.buckets import bucket_sizes, nearest, step_of


def test_ratio_one_is_the_square_of_before() -> None:
    assert bucket_sizes(32, (1.0,)) == ((32, 32),)
    assert bucket_sizes(512, (1.0,), 64) == ((512, 512),)


def test_sizes_are_those_of_their_ratios() -> None:
    assert bucket_sizes(64, (0.5, 1.0, 2.0), 8) == ((48, 88), (64, 64), (88, 48))
    assert bucket_sizes(512, (0.75, 4 / 3), 64) == ((448, 576), (576, 448))
    assert bucket_sizes(32, (1.0, 1.01), 8) == ((32, 32),)  # once each


@given(st.integers(1, 40), st.lists(st.floats(0.11, 9.9), min_size=1, max_size=6), st.sampled_from([8, 16, 64]))
def test_sides_are_multiples_and_areas_about_right(units: int, ratios: list[float], step: int) -> None:
    side = units * step
    sizes = bucket_sizes(side, ratios, step)
    assert len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0 and width > 0 and height > 0
    for ratio in ratios:
        size = nearest(round(1000 * ratio), 1000, sizes)
        best = min(abs(math.log(w / h) - math.log(round(1000 * ratio) / 1000)) for w, h in sizes)
        assert abs(math.log(size[0] / size[1]) - math.log(round(1000 * ratio) / 1000)) == best
        if units >= 12:
            assert side * side / 1.7 < size[0] * size[1] < side * side * 1.7


@pytest.mark.parametrize(
    ("picture", "size"),
    [((100, 100), (64, 64)), ((300, 100), (88, 48)), ((100, 135), (64, 64)), ((100, 136), (48, 88))],
)
def test_pictures_go_to_the_nearest_ratio_as_a_factor(picture: tuple[int, int], size: tuple[int, int]) -> None:
    assert nearest(*picture, bucket_sizes(64, (1.0, 0.5, 2.0))) == size


def test_the_step_follows_the_models() -> None:
    assert step_of(Recipe(name="a")) == 8
    wide = {"autoencoder": {"channels": [8, 8, 8, 8]}, "denoiser": {"channels": [16, 16, 16]}}
    assert step_of(Recipe.model_validate({"name": "a", "train": wide})) == 32
    odd = {"prepare": {"image_size": 48}, "train": {"text_encoder": {"patch": 12}}}
    assert step_of(Recipe.model_validate({"name": "a", **odd})) == 24
