"""The size dial: what it stands for, and what wins over it."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from components.contracts.recipe import Autoencoder, Denoiser, Recipe, TextEncoder
from components.contracts.sizes import AUTOENCODERS, DENOISERS, TEXT_ENCODERS, Size

SIZES = get_args(Size)


def test_the_smallest_size_is_what_a_recipe_without_a_dial_has() -> None:
    assert Denoiser(size="xs").identity() == Denoiser().identity()
    assert Autoencoder(size="xs").identity() == Autoencoder().identity()
    assert TextEncoder(size="xs").identity() == TextEncoder().identity()
    assert Denoiser(family="dit", size="xs").identity() == Denoiser(family="dit").identity()


@pytest.mark.parametrize("family", ["unet", "dit"])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_possible_shape_and_given_keys_win(family: str, size: str) -> None:
    config = Denoiser.model_validate({"family": family, "size": size, "heads": 2, "learning_rate": 0.5})
    assert config.heads == 2 and config.learning_rate == 0.5
    expected = DENOISERS[family][size]
    kept = {key: getattr(config, key) for key in expected if key not in ("heads", "learning_rate")}
    assert kept == {key: value for key, value in expected.items() if key in kept}
    assert Autoencoder.model_validate({"size": size}).channels == AUTOENCODERS[size]["channels"]
    assert TextEncoder.model_validate({"size": size}).width == TEXT_ENCODERS[size]["width"]


def test_the_dial_is_no_part_of_an_identity_but_what_it_stands_for_is() -> None:
    spelled = Denoiser.model_validate({"family": "dit", **DENOISERS["dit"]["b"]})
    assert spelled.identity() == Denoiser(family="dit", size="b").identity()
    assert "size" not in spelled.identity() and "channels" not in spelled.identity()
    assert "width" not in Denoiser().identity() and Denoiser().identity()["family"] == "unet"
    chosen = Recipe.model_validate({"name": "x", "train": {"denoiser": {"size": "s"}}})
    again = Recipe.model_validate(chosen.model_dump())
    assert again.train.denoiser == Denoiser(size="s")


def test_what_is_loaded_is_no_part_of_a_trainings_identity() -> None:
    assert TextEncoder(source="a/b", revision="c", max_tokens=9).identity() == TextEncoder().identity()
    assert Autoencoder(source="a/b", revision="c", factor=32).identity() == Autoencoder().identity()


def test_factors_of_down_sampling() -> None:
    assert Autoencoder().downsampling == 4 and Autoencoder(source="a/b").downsampling == 8
    assert Autoencoder(source="a/b", factor=32).downsampling == 32
    assert Denoiser().downsampling == 2 and Denoiser(family="dit", patch=4).downsampling == 4
    train = {"denoiser": {"family": "dit", "patch": 4}, "text_encoder": {"patch": 4}}
    with pytest.raises(ValidationError, match=r"image_size 20 must be a multiple of 16"):
        Recipe.model_validate({"name": "x", "train": train, "prepare": {"image_size": 20}})


@pytest.mark.parametrize(("section", "fault"), [
    ({"family": "dit", "width": 30, "heads": 4}, "width 30 must be a multiple of heads"),
    ({"cross_attention": [True]}, "cross_attention names 1 levels, channels 2"),
    ({"size": "huge"}, "size"),
    ({"family": "cnn"}, "family"),
])  # fmt: skip
def test_impossible_shapes_are_refused(section: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Denoiser.model_validate(section)
    with pytest.raises(ValidationError, match="scaling: config needs a source"):
        Autoencoder(scaling="config")
