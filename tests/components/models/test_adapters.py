"""LoRA on a denoiser: off it is not there at all, on it is one adapter alone, and stock code opens its file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from components.contracts.errors import ArtifactError, TrainingError
from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.models.adapters import WEIGHTS, Adapters, add_lora, layers_of, read_lora, save_lora
from components.models.autoencoder import make_autoencoder
from components.models.denoiser import load_denoiser, make_denoiser
from components.models.pipeline import Generator, save_pipeline
from components.models.stepping import Picture, Style
from components.models.stepping import draw as pictures_by_steps
from components.models.text_encoder import load_tokenizer, make_clip, text_tower
from components.runtime.precision import has_bf16
from tests.components.training.datasets import write_tokenizer

FAMILIES = {
    "unet": Denoiser(channels=(16, 32), norm_groups=4, heads=2),
    "dit": Denoiser(family="dit", width=32, depth=2, heads=2, patch=2),
}
CLOSE = 1 if not has_bf16("cpu") else 6  # levels of 255 by which a batch may change a picture
PIPELINES = {"unet": "StableDiffusionPipeline", "dit": "PixArtAlphaPipeline"}
PARTS = {"unet": "unet", "dit": "transformer"}

STOCK = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
from peft import PeftModel
assert not any("components" in m for m in sys.modules)
unet, dit, unet_lora, dit_lora, out = sys.argv[1:]
def draw(pipeline, **more):
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(["a red circle"], num_inference_steps=3, guidance_scale=2.0, output_type="np",
                     generator=[torch.Generator().manual_seed(5)], **more).images
    return (drawn * 255).round().astype(np.uint8)
first = DiffusionPipeline.from_pretrained(unet)
first.load_lora_weights(unet_lora)
second = DiffusionPipeline.from_pretrained(dit)
second.transformer = PeftModel.from_pretrained(second.transformer, dit_lora)
side = second.transformer.config.sample_size * second.vae_scale_factor
np.savez(out, unet=draw(first), dit=draw(second, height=side, width=side, use_resolution_binning=False))
"""


def make_lora(model: Path, family: str, folder: Path, seed: int = 1, rank: int = 2, targets: str = "all") -> Path:
    """A LoRA with random weights on both sides, as after a training."""
    denoiser = load_denoiser(model / PARTS[family])
    add_lora(denoiser, rank, 2.0 * rank, targets)  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(seed)
    for name, weight in denoiser.named_parameters():
        if "lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=draws)
    save_lora(denoiser, folder, PIPELINES[family])
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family with random weights, whose last layers are not zero."""
    home = tmp_path_factory.mktemp("models")
    write_tokenizer(home / "tokenizer", ["a red circle", "a blue star"], 300, 12)
    tokenizer = load_tokenizer(home / "tokenizer")
    torch.manual_seed(0)
    for family, config in FAMILIES.items():
        clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, 16)
        autoencoder = make_autoencoder(Autoencoder(channels=(8, 16), norm_groups=4), 16)
        denoiser = make_denoiser(config, 4, 8, 32)
        for weight in denoiser.parameters():
            if not weight.abs().sum():
                torch.nn.init.normal_(weight, std=0.1)
        save_pipeline(home / family, text_tower(clip), tokenizer, autoencoder, denoiser, scaling=0.7)
    return {family: home / family for family in FAMILIES}


def draw(generator: Generator, key: str = "", folder: Path | None = None) -> np.ndarray:
    style = Style(key, folder) if folder else None
    return generator.generate(["a red circle"], [5], steps=3, guidance_scale=2.0, style=style)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_it_draws_otherwise_and_off_to_the_bit_the_same(
    models: dict[str, Path], family: str, tmp_path: Path
) -> None:
    folders = [make_lora(models[family], family, tmp_path / str(n), seed=n) for n in (1, 2)]
    alone = []
    for n, folder in enumerate(folders):
        alone.append(draw(Generator.load(models[family], "cpu"), str(n), folder))
    generator = Generator.load(models[family], "cpu")
    base = draw(generator)
    assert not np.array_equal(alone[0], base) and not np.array_equal(alone[0], alone[1])
    for _ in range(2):  # in turn: nothing of one is left in another
        for n, folder in enumerate(folders):
            assert np.array_equal(draw(generator, str(n), folder), alone[n])
            assert np.array_equal(draw(generator), base)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_one_batch_wear_different_styles(models: dict[str, Path], family: str, tmp_path: Path) -> None:
    every = make_lora(models[family], family, tmp_path / "all")
    some = make_lora(models[family], family, tmp_path / "some", seed=2, rank=3, targets="attention")
    generator = Generator.load(models[family], "cpu")
    looks = [None, Style("all", every), Style("some", some), None]
    asked = [Picture("a red circle", 5, 3, scale, style=look) for look in looks for scale in (1.0, 2.0)]
    calls: list[int] = []
    denoiser = generator._denoiser
    hook = denoiser.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    together = pictures_by_steps(generator, asked)
    hook.remove()
    assert calls == [12] * 3  # one call a step: 8 pictures, 4 of them with guidance
    for picture, pixels in zip(asked, together, strict=True):
        alone = pictures_by_steps(generator, [picture])[0]
        assert np.abs(alone.astype(int) - pixels).max() <= CLOSE, picture
    assert len({pixels.tobytes() for pixels in together[2:6]}) == 4
    assert np.array_equal(together[0], together[6]) and np.array_equal(together[1], together[7])


def test_an_error_inside_leaves_the_base(models: dict[str, Path], tmp_path: Path) -> None:
    folder = make_lora(models["unet"], "unet", tmp_path)
    generator = Generator.load(models["unet"], "cpu")
    base = draw(generator)
    adapters = generator._adapters
    name = adapters.load("a", folder)
    with pytest.raises(ZeroDivisionError), adapters.on([name]):
        raise ZeroDivisionError
    assert np.array_equal(draw(generator), base)


def test_the_least_recently_used_goes(models: dict[str, Path], tmp_path: Path) -> None:
    folder = make_lora(models["unet"], "unet", tmp_path)
    denoiser = load_denoiser(models["unet"] / "unet")
    adapters = Adapters(denoiser, most=2)
    for key in ("a", "b", "a", "c"):
        adapters.load(key, folder)
    assert adapters.loaded == ("a", "c")
    left = {name.split(".")[-2] for name, _ in denoiser.named_parameters() if "lora_" in name}
    assert left == {"a", "c"} and set(denoiser.peft_config) == {"a", "c"}
    assert not any(weight.requires_grad for weight in denoiser.parameters())
    adapters.load("d", folder, worn=("a", "c"))  # both are needed: for a while there are more than two
    assert adapters.loaded == ("a", "c", "d")
    adapters.load("e", folder)
    assert adapters.loaded == ("d", "e")


def test_a_style_that_is_worn_stays_until_the_drawing_is_gone(models: dict[str, Path], tmp_path: Path) -> None:
    folder = make_lora(models["unet"], "unet", tmp_path)
    generator = Generator.load(models["unet"], "cpu")
    generator._adapters = Adapters(generator._denoiser, most=1)
    drawings = generator.begin([Picture("a", 1, 3, 2.0, style=Style("one", folder))])
    generator.step(drawings)
    generator.begin([Picture("a", 1, 3, 2.0, style=Style("two", folder))])
    assert generator._adapters.loaded == ("one", "two")
    generator.step(drawings)
    del drawings
    generator.begin([Picture("a", 1, 3, 2.0, style=Style("three", folder))])
    assert generator._adapters.loaded == ("three",)


def test_what_is_no_lora_or_of_another_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    generator = Generator.load(models["unet"], "cpu")
    base = draw(generator)
    foreign = make_lora(models["dit"], "dit", tmp_path / "dit")
    with pytest.raises(ArtifactError, match="does not fit the model"):
        draw(generator, "a", foreign)
    (tmp_path / WEIGHTS).write_bytes(b"no such thing")
    with pytest.raises(ArtifactError, match="cannot be read as a LoRA"):
        draw(generator, "b", tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="cannot be read as a LoRA"):
        draw(generator, "c", tmp_path)
    assert np.array_equal(draw(generator), base)
    mine = make_lora(models["unet"], "unet", tmp_path / "unet")
    assert not np.array_equal(draw(generator, "d", mine), base)
    with pytest.raises(ArtifactError, match="does not fit the model"):
        draw(generator, "a", foreign)
    assert generator._adapters.loaded == ("d",) and np.array_equal(draw(generator), base)


def test_layers() -> None:
    unet = make_denoiser(FAMILIES["unet"], 4, 8, 32)
    attention, every = layers_of(unet, "attention"), layers_of(unet, "all")
    assert set(attention) < set(every) and len(attention) == 8  # q, k, v and out, to itself and to the prompt
    assert not {"conv_in", "conv_out", "time_embedding.linear_1"} & set(every)
    with pytest.raises(TrainingError, match="no layer"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, 2.0, "attention")


def test_the_file_is_the_same_every_time(models: dict[str, Path], tmp_path: Path) -> None:
    made = [make_lora(models["unet"], "unet", tmp_path / str(n), seed=3) / WEIGHTS for n in range(8)]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in made}) == 1
    tensors, described = read_lora(made[0])
    assert (described["r"], described["lora_alpha"]) == (2, 4.0)
    assert len(tensors) == 2 * len(described["target_modules"])
    config = json.loads((make_lora(models["dit"], "dit", tmp_path / "dit") / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == 2


@pytest.mark.integration
def test_stock_pipelines_open_it_in_a_clean_process(models: dict[str, Path], tmp_path: Path) -> None:
    loras = {family: make_lora(models[family], family, tmp_path / family) for family in FAMILIES}
    out = tmp_path / "stock.npz"
    arguments = [str(models["unet"]), str(models["dit"]), str(loras["unet"]), str(loras["dit"]), str(out)]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *arguments],
        cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as stock:
        for family in FAMILIES:
            generator = Generator.load(models[family], "cpu")
            base = draw(generator)
            ours = draw(generator, "a", loras[family])
            apart = np.abs(ours.astype(int) - stock[family]).mean()
            assert apart < 2, f"{family}: {apart} grey levels"  # ours may be in bf16
            assert np.abs(base.astype(int) - stock[family]).mean() > 4 * apart
