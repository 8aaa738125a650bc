"""The finished model: opened by stock code, and sampled alike in any batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.contracts.errors import ArtifactError, InputError, TrainingError
from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.models.autoencoder import load_autoencoder, make_autoencoder
from components.models.denoiser import make_denoiser, predict
from components.models.loading import copy_autoencoder, copy_text_encoder
from components.models.pipeline import Generator, save_pipeline
from components.models.samplers import make_scheduler
from components.models.text_encoder import (
    load_text_tower,
    load_tokenizer,
    make_clip,
    pad_tokens,
    text_states,
    text_tower,
    text_width,
)
from tests.components.models.others import save_clip, save_dc, save_kl, save_t5
from tests.components.training.datasets import write_tokenizer

CAPTIONS = ["a small red circle on a white background", "a large blue star, top left"]

STOCK = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
assert not any("components" in m for m in sys.modules)
for folder in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(s) for s in (5, 6)]
    small = {"use_resolution_binning": False} if type(pipeline).__name__ == "PixArtAlphaPipeline" else {}
    pictures = pipeline(["a small red circle", "a large blue star"], num_inference_steps=4, guidance_scale=3.0,
                        generator=generators, output_type="np", **small).images
    np.save(f"{folder}.npy", (pictures * 255).round().astype(np.uint8))
"""
WITH = {"unet": "StableDiffusionPipeline", "dit": "PixArtAlphaPipeline"}
SMALL = {
    "unet": Denoiser(channels=(16, 32), norm_groups=4, heads=2),
    "dit": Denoiser(family="dit", width=32, depth=2, heads=2),
}


def awake(denoiser: Any) -> Any:
    """What starts at zero gets weights, so that pictures differ by prompt and seed."""
    torch.manual_seed(4)
    for name, weight in denoiser.named_parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
        elif "scale_shift_table" in name:
            raise AssertionError("the tables start at zero")
    return denoiser.eval()


def save_with_parts(home: Path, family: str, text: Path, autoencoder: Path, prediction: str) -> Path:
    """A model of a fresh denoiser and of parts that others trained."""
    copy_text_encoder(text, home / "text", home / "tokenizer", 20)
    grid = copy_autoencoder(autoencoder, home / "autoencoder")
    tower, side = load_text_tower(home / "text"), 16 // grid.factor
    denoiser = awake(make_denoiser(SMALL[family], grid.channels, side, text_width(tower)))
    scheduler = make_scheduler(prediction, zero_terminal_snr=True)
    vae, tokenizer = load_autoencoder(home / "autoencoder"), load_tokenizer(home / "tokenizer")
    save_pipeline(home / "model", tower, tokenizer, vae, denoiser, 1.3, scheduler)
    return home / "model"


@pytest.fixture(scope="module", params=["unet", "dit"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights whose last layers are not zero, so that pictures differ."""
    home = tmp_path_factory.mktemp("model")
    write_tokenizer(home / "tokenizer", CAPTIONS, 300, 12)
    tokenizer = load_tokenizer(home / "tokenizer")
    torch.manual_seed(0)
    clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, 16)
    autoencoder = make_autoencoder(Autoencoder(channels=(8, 16), norm_groups=4), 16)
    denoiser = awake(make_denoiser(SMALL[request.param], 4, 8, 32))
    save_pipeline(home / "model", text_tower(clip), tokenizer, autoencoder, denoiser, scaling=0.7)
    return home / "model"


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return Generator.load(folder, "cpu")


def test_no_pickles_and_no_weights_without_names(folder: Path) -> None:
    weights = {p.name for p in folder.rglob("*") if p.is_file() and p.suffix not in (".json", ".txt", ".jinja")}
    assert weights == {"model.safetensors", "diffusion_pytorch_model.safetensors"}


def test_it_is_a_stock_pipeline(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == WITH["unet" if (folder / "unet").is_dir() else "dit"]


@pytest.mark.integration
def test_stock_pipelines_open_them_elsewhere(folder: Path, tmp_path: Path) -> None:
    """In another process, from another directory, with no code of this project on the path and no hub in reach."""
    folders = [folder]
    t5, kl = save_t5(tmp_path / "t5"), save_kl(tmp_path / "kl")
    if (folder / "unet").is_dir():
        folders.append(save_with_parts(tmp_path / "a", "unet", t5, kl, "v"))
    else:
        folders.append(save_with_parts(tmp_path / "b", "dit", t5, save_dc(tmp_path / "dc"), "flow"))
        folders.append(save_with_parts(tmp_path / "c", "dit", save_clip(tmp_path / "clip"), kl, "epsilon"))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", STOCK, *map(str, folders)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for each in folders:
        stock = np.load(f"{each}.npy")
        assert stock.shape == (2, 16, 16, 3) and stock.std() > 0
        generator = Generator.load(each, "cpu")
        ours = generator.generate(["a small red circle", "a large blue star"], [5, 6], steps=4, guidance_scale=3.0)
        # the same sampler on the same noise; ours may compute in bf16
        assert np.abs(ours.astype(int) - stock.astype(int)).mean() < 4, each
        assert np.abs(stock[0].astype(int) - stock[1].astype(int)).mean() > 1


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_a_fresh_denoiser_predicts_zero_and_a_block_is_the_identity(family: str) -> None:
    torch.manual_seed(0)
    model = make_denoiser(SMALL[family], 4, 8, 32)
    noisy, states, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 12, 32), torch.ones(2, 12, dtype=torch.bool)
    levels = torch.tensor([3.0, 700.0])
    assert not predict(model, noisy, levels, states, mask).any()
    if family == "dit":
        tokens, found = model.pos_embed(noisy), []
        model.transformer_blocks[-1].register_forward_hook(lambda _, given, made: found.append(made))
        predict(model, noisy, levels, states, mask)
        assert torch.allclose(found[0], tokens, atol=1e-6)


def test_padding_is_not_seen_by_the_transformer_and_other_shapes_are_drawn() -> None:
    model = awake(make_denoiser(SMALL["dit"], 4, 8, 32))
    noisy, states, level = torch.randn(2, 4, 4, 16), torch.randn(2, 12, 32), torch.tensor(500.0)
    mask = torch.arange(12)[None] < torch.tensor([[5], [12]])
    with torch.inference_mode():
        whole = predict(model, noisy, level, states, mask)
        cut = predict(model, noisy[:1], level, states[:1, :5], mask[:1, :5])
        other = predict(model, noisy, level, states.flip(1), mask)
    assert whole.shape == noisy.shape and torch.allclose(whole[:1], cut, atol=1e-5)
    assert (whole - other).abs().max() > 1e-3


def test_a_unet_has_no_pipeline_with_an_autoencoder_of_other_kind(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"U-Net with an AutoencoderDC.*family=dit"):
        save_with_parts(tmp_path, "unet", save_clip(tmp_path / "clip"), save_dc(tmp_path / "dc"), "flow")


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


def test_damage_to_any_file_is_one_error(folder: Path, tmp_path: Path) -> None:
    """Cut short, garbled or of another model: whichever file it is, the error is the project's own."""
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    index = whole / "model_index.json"
    damaged = 0
    for path in sorted(path for path in whole.rglob("*") if path.is_file() and path != index):
        before = path.read_bytes()
        other = b"[]" if path.suffix == ".json" else b"{}"
        for after in (b"", before[: len(before) // 2], b"\xff" * len(before), other):
            path.write_bytes(after)
            try:
                Generator.load(whole, "cpu")
            except ArtifactError:
                damaged += 1
        path.write_bytes(before)
    assert damaged >= 20
    Generator.load(whole, "cpu")


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
        make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), load_tokenizer(tmp_path), 16)
    tokenizer.bos_token = None
    with pytest.raises(TrainingError, match=r"lacks a begin token"):
        make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, 16)
