"""The seed contract: a picture does not depend on what it was drawn with, nor on when the others came and went."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.contracts.errors import InputError
from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.models.autoencoder import make_autoencoder
from components.models.denoiser import make_denoiser
from components.models.pipeline import Generator
from components.models.samplers import NAMES, make_scheduler
from components.models.stepping import Drawing, Picture, draw, pictures_of
from components.models.text_encoder import load_tokenizer, make_clip, text_tower
from components.runtime.precision import has_bf16
from tests.components.training.datasets import write_tokenizer

PROMPTS = ["a small red circle", "a large blue star", "red", ""]
# decibels between a picture drawn alone and in a batch, by what the processor computes in
LEAST_PSNR = 30.0 if has_bf16("cpu") else 55.0


@pytest.fixture(scope="module", params=["unet", "dit"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A small model of random weights, of each family."""
    home: Path = tmp_path_factory.mktemp("model")
    write_tokenizer(home, PROMPTS[:2], 300, 12)
    tokenizer = load_tokenizer(home)
    torch.manual_seed(0)
    clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, 16)
    shape: dict[str, Any] = {"unet": {"channels": (16, 32), "norm_groups": 4, "heads": 2}}.get(
        request.param, {"family": "dit", "width": 32, "depth": 2, "heads": 2}
    )
    denoiser = make_denoiser(Denoiser(**shape), 4, 8, 32)
    for weight in denoiser.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    autoencoder = make_autoencoder(Autoencoder(channels=(8, 16), norm_groups=4), 16)
    autoencoder.register_to_config(scaling_factor=0.7)
    return Generator(
        tokenizer, text_tower(clip), denoiser.eval(), autoencoder.eval(), make_scheduler(), torch.device("cpu")
    )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Decibels between two pictures of 0 to 255; infinite where they are equal."""
    error = float(np.mean((one.astype(float) - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


PICTURES = st.builds(
    Picture,
    prompt=st.sampled_from(PROMPTS),
    seed=st.integers(0, 3),
    steps=st.integers(1, 5),
    guidance_scale=st.sampled_from([1.0, 2.0, 4.0]),
    negative_prompt=st.sampled_from(["", "red"]),
    sampler=st.sampled_from([None, *NAMES]),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(PICTURES, st.integers(0, 4)), min_size=2, max_size=6))
def test_a_picture_is_the_same_whatever_it_was_drawn_with(
    generator: Generator, asked: list[tuple[Picture, int]]
) -> None:
    """Pictures come before the steps that chance chose, and leave when they are done."""
    underway: dict[int, Drawing] = {}
    found: dict[int, np.ndarray] = {}
    for turn in range(12):
        come = [i for i, (_, when) in enumerate(asked) if when == turn]
        if come:
            underway |= dict(zip(come, generator.begin([asked[i][0] for i in come]), strict=True))
        if underway:
            generator.step(list(underway.values()))
        if ready := [i for i, drawing in underway.items() if drawing.done]:
            found |= dict(zip(ready, generator.finish([underway.pop(i) for i in ready]), strict=True))
    for i, (picture, _) in enumerate(asked):
        alone = draw(generator, [picture])[0]
        assert psnr(alone, found[i]) >= LEAST_PSNR, (picture, psnr(alone, found[i]))


def test_the_same_batch_gives_the_same_bits(generator: Generator) -> None:
    asked = [Picture(prompt, 7, 3, 2.0) for prompt in PROMPTS]
    assert np.array_equal(draw(generator, asked), draw(generator, asked))


def test_generate_goes_the_same_way(generator: Generator) -> None:
    ours = generator.generate(PROMPTS, [4] * 4, steps=3, guidance_scale=2.0, sampler="unipc", negative_prompts=PROMPTS)
    asked = [Picture(prompt, 4, 3, 2.0, prompt, "unipc") for prompt in PROMPTS]
    assert np.array_equal(ours, draw(generator, asked))
    other = generator.generate(PROMPTS, [4] * 4, steps=3, guidance_scale=2.0)
    assert not np.array_equal(ours, other)


def test_guided_and_unguided_rows_share_one_call(generator: Generator) -> None:
    rows: list[int] = []
    denoiser = generator._denoiser
    hook = denoiser.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    drawings = generator.begin([Picture("a", 1, 2, 1.0), Picture("b", 1, 2, 3.0), Picture("c", 1, 1, 3.0)])
    generator.step(drawings)
    generator.step([drawing for drawing in drawings if not drawing.done])
    hook.remove()
    assert rows == [5, 3] and [drawing.rows for drawing in drawings] == [1, 2, 2]
    assert [drawing.done for drawing in drawings] == [True] * 3


def test_prompts_are_read_once(generator: Generator) -> None:
    read: list[int] = []
    tower = generator._tower
    hook = tower.register_forward_hook(lambda *given: read.append(1))
    for _ in range(3):
        generator.begin([Picture("something new", 1, 2, 3.0), Picture("something new", 2, 2, 3.0, "not that")])
    hook.remove()
    assert len(read) == 1
    generator.begin([Picture(f"prompt {i}", 1) for i in range(60)])
    assert len(generator._told) == 32


def test_a_preview_becomes_the_picture(generator: Generator) -> None:
    drawings = generator.begin([Picture("a large blue star", 3, 8, 2.0)])
    generator.step(drawings)
    early = generator.preview(drawings)[0]
    for _ in range(6):
        generator.step(drawings)
    late = generator.preview(drawings)[0]
    generator.step(drawings)
    picture = generator.finish(drawings)[0]
    assert early.shape == picture.shape and early.dtype == np.uint8
    assert psnr(late, picture) > psnr(early, picture)
    assert np.array_equal(generator.preview(drawings)[0], picture)  # the last step goes to its prediction


def test_other_sizes(generator: Generator) -> None:
    step = generator.granularity
    assert step == 4  # a factor of 2, and two levels or patches of 2
    for size in ((24, 16), (16, 24), (8, 8)):
        pictures = generator.generate(["red"], [1], steps=2, guidance_scale=2.0, size=size)
        assert pictures.shape == (1, size[1], size[0], 3) and pictures.std() > 0
    for size in ((18, 16), (0, 10), (2, 2)):
        with pytest.raises(InputError, match=r"cannot be drawn.*multiples of 4 pixels"):
            generator.generate(["red"], [1], steps=2, guidance_scale=2.0, size=size)


def test_an_error_leaves_the_drawings_as_they_were(generator: Generator) -> None:
    asked = [Picture("a", 1, 3, 2.0), Picture("b", 1, 3, 1.0)]
    drawings = generator.begin(asked)
    generator.step(drawings)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of order")

    hook = generator._denoiser.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of order"):
        generator.step(drawings)
    hook.remove()
    for _ in range(2):
        generator.step(drawings)
    assert np.array_equal(generator.finish(drawings), draw(generator, asked))


def test_wrong_samplers_and_numbers_are_refused(generator: Generator) -> None:
    with pytest.raises(InputError, match=r"no sampler 'ddim'"):
        generator.generate(["a"], [1], steps=2, guidance_scale=1.0, sampler="ddim")
    with pytest.raises(InputError, match="both at least 1"):
        pictures_of(["a"], [1], steps=2, guidance_scale=0.5)
    assert generator.samplers[0] == "dpm++" and set(generator.samplers) == {"dpm++", "euler", "unipc"}
