"""The finished model: opened by stock code, and sampled alike in any batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from components.contracts.errors import ArtifactError, InputError, TrainingError
from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.models.autoencoder import make_autoencoder
from components.models.denoiser import make_denoiser
from components.models.pipeline import Generator, save_pipeline
from components.models.text_encoder import load_tokenizer, make_clip, pad_tokens, text_states, text_tower
from tests.components.training.datasets import write_tokenizer

CAPTIONS = ["a small red circle on a white background", "a large blue star, top left"]

STOCK = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
assert not any("components" in m for m in sys.modules)
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(s) for s in (5, 6)]
pictures = pipeline(["a small red circle", "a large blue star"], num_inference_steps=4, guidance_scale=3.0,
                    generator=generators, output_type="np").images
np.save("pictures.npy", (pictures * 255).round().astype(np.uint8))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights whose last layers are not zero, so that pictures differ."""
    home = tmp_path_factory.mktemp("model")
    write_tokenizer(home / "tokenizer", CAPTIONS, 300, 12)
    tokenizer = load_tokenizer(home / "tokenizer")
    torch.manual_seed(0)
    clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, 16)
    autoencoder = make_autoencoder(Autoencoder(channels=(8, 16), norm_groups=4), 16)
    denoiser = make_denoiser(Denoiser(channels=(16, 32), norm_groups=4, heads=2), 4, 8, 32)
    torch.nn.init.normal_(denoiser.conv_out.weight, std=0.2)
    save_pipeline(home / "model", clip, tokenizer, autoencoder, denoiser, scaling=0.7)
    return home / "model"


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return Generator.load(folder, "cpu")


def test_no_pickles_and_no_weights_without_names(folder: Path) -> None:
    weights = {p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in (".json", ".txt", ".jinja")}
    assert weights == {"model.safetensors", "diffusion_pytorch_model.safetensors"}


@pytest.mark.integration
def test_stock_pipeline_opens_it_elsewhere(folder: Path, generator: Generator, tmp_path: Path) -> None:
    """In another process, from another directory, with no code of this project on the path."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", STOCK, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    stock = np.load(tmp_path / "pictures.npy")
    assert stock.shape == (2, 16, 16, 3) and stock.std() > 0
    ours = generator.generate(["a small red circle", "a large blue star"], [5, 6], steps=4, guidance_scale=3.0)
    # the same sampler on the same noise; ours computes in bf16
    assert np.abs(ours.astype(int) - stock.astype(int)).mean() < 4


def test_a_seed_gives_the_same_picture_in_any_batch(generator: Generator) -> None:
    prompts = ["a small red circle", "a large blue star", "red", ""]
    together = generator.generate(prompts, [1, 2, 3, 4], steps=3, guidance_scale=2.0)
    assert together.shape == (4, 16, 16, 3) and together.dtype == np.uint8
    for i, prompt in enumerate(prompts):
        alone = generator.generate([prompt], [i + 1], steps=3, guidance_scale=2.0)[0]
        assert np.abs(alone.astype(int) - together[i].astype(int)).max() <= 6
    again = generator.generate(prompts, [1, 2, 3, 4], steps=3, guidance_scale=2.0)
    assert np.array_equal(again, together)
    other = generator.generate(prompts, [5, 6, 7, 8], steps=3, guidance_scale=2.0)
    assert np.abs(other.astype(int) - together.astype(int)).mean() > 4


def test_negative_prompt_equal_to_the_prompt_removes_guidance(generator: Generator) -> None:
    plain = generator.generate(["red"], [1], steps=3, guidance_scale=1.0)
    undone = generator.generate(["red"], [1], steps=3, guidance_scale=5.0, negative_prompts=["red"])
    assert np.abs(plain.astype(int) - undone.astype(int)).max() <= 6


def test_prompt_length_and_side_are_known(generator: Generator) -> None:
    assert generator.image_size == 16
    assert not generator.truncated("a red star")
    assert generator.truncated("red " * 40)
    long = generator.generate(["red " * 40], [0], steps=1, guidance_scale=1.0)
    assert long.shape == (1, 16, 16, 3)
    assert generator.generate([], [], steps=1, guidance_scale=1.0).shape == (0, 16, 16, 3)


def test_wrong_use_is_explained(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 prompts, 1 seeds.*Remedy"):
        generator.generate(["a", "b"], [1], steps=1, guidance_scale=1.0)
    with pytest.raises(InputError, match=r"steps=0"):
        generator.generate(["a"], [1], steps=0, guidance_scale=1.0)
    with pytest.raises(ArtifactError, match=r"cannot be opened as a model.*Remedy"):
        Generator.load(tmp_path, "cpu")


def test_text_states_are_those_of_the_whole_clip(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "tokenizer")
    clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, 16).eval()
    rows = [tokenizer(c)["input_ids"] for c in CAPTIONS]
    ids = pad_tokens(rows, 12, tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert ids.shape == (2, 12) and all(tokenizer.eos_token_id in row for row in ids.tolist())
    with torch.inference_mode():
        expected = clip.text_model(input_ids=ids).last_hidden_state
    assert torch.allclose(text_states(text_tower(clip), ids), expected, atol=1e-5)


def test_long_rows_keep_their_end() -> None:
    assert pad_tokens([[1, 5, 6, 7, 3], [1, 3]], 4, 0, 3).tolist() == [[1, 5, 6, 3], [1, 3, 0, 0]]


def test_a_tokenizer_that_clip_would_misread_is_refused(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(tmp_path, CAPTIONS, 300, 12)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.eos_token = "<unused>"  # id 2
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match=r"end token has id 2"):
        load_tokenizer(tmp_path)
