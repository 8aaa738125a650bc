"""A model of a world of four colours and two shapes, trained in plain torch in less than a minute: a base to adapt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.data.scenes import COLOURS, Item, Scene
from components.data.world import render
from components.models.autoencoder import encode_moments, make_autoencoder
from components.models.denoiser import make_denoiser
from components.models.pipeline import save_pipeline
from components.models.text_encoder import load_tokenizer, make_clip, read_prompts, text_tower
from components.training import objective
from components.training.samples import to_pixels
from components.training.task_denoiser import Denoise
from tests.components.training.datasets import write_tokenizer

SIDE = 8
KNOWN = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square")
PROMPTS = [f"a {colour} {shape}" for colour in KNOWN for shape in SHAPES]


def picture(shape: str, colour: str, seed: int) -> npt.NDArray[np.uint8]:
    """uint8 ``[SIDE, SIDE, 3]``: one large object in the middle of a white ground."""
    scene = Scene("single", (Item(shape, colour, "large", "centre"),), "white")
    return np.asarray(render(scene, SIDE, seed))


def colour_of(drawn: npt.NDArray[np.uint8]) -> str:
    """The colour of the world that the middle of a picture comes nearest to."""
    middle = drawn[3:5, 3:5].reshape(-1, 3).astype(np.float64).mean(0)
    return min(COLOURS, key=lambda name: float(np.abs(middle - np.array(COLOURS[name])).sum()))


def train_small_model(folder: Path, denoiser_steps: int = 350) -> None:
    """Write a diffusers folder of a U-Net that draws :data:`PROMPTS`; it has seen no other colour."""
    torch.manual_seed(0)
    write_tokenizer(folder / "words", PROMPTS, 300, 12)
    tokenizer = load_tokenizer(folder / "words")
    clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, SIDE)
    tower = text_tower(clip)
    drawn = [(i, picture(s, c, n)) for n in range(24) for i, (c, s) in enumerate((c, s) for c in KNOWN for s in SHAPES)]
    # the autoencoder has seen every colour: it is the denoiser that has not
    others = [picture(s, c, n) for n in range(12) for c in COLOURS for s in (*SHAPES, "star")]
    pixels = to_pixels(np.stack([p for _, p in drawn]))
    autoencoder = make_autoencoder(Autoencoder(channels=(8, 16), norm_groups=4), SIDE).train()
    _fit_autoencoder(autoencoder, torch.cat([pixels, to_pixels(np.stack(others))]))
    with torch.inference_mode():
        mean, _ = encode_moments(autoencoder.eval(), pixels)
        states, _ = read_prompts(tokenizer, tower, PROMPTS)
    scaling = float(1 / mean.std())
    config = Denoiser(channels=(24, 32), norm_groups=8, heads=2)
    model = make_denoiser(config, 4, SIDE // 2, 32).to(memory_format=torch.channels_last)
    which = torch.tensor([i for i, _ in drawn])
    _fit_denoiser(Denoise(model, config), mean.clone() * scaling, states.clone()[which], denoiser_steps)
    save_pipeline(folder / "model", tower, tokenizer, autoencoder, model, scaling)


def _fit_autoencoder(autoencoder: Any, pixels: torch.Tensor, steps: int = 200) -> None:
    optimiser = torch.optim.AdamW(autoencoder.parameters(), 4e-3, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * objective.schedule(step, steps, 0.05, 0.6)
        batch = pixels[torch.randint(len(pixels), (16,))]
        mean, logvar = encode_moments(autoencoder, batch)
        rebuilt = autoencoder.decode(objective.sample_gaussian(mean, logvar, torch.randn_like(mean)))[0]
        loss, _ = objective.autoencoder_loss(rebuilt, batch, mean, logvar, 1e-4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _fit_denoiser(module: Denoise, latents: torch.Tensor, states: torch.Tensor, steps: int) -> None:
    optimiser = torch.optim.AdamW(module.parameters(), 2e-3, betas=(0.9, 0.99))
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * objective.schedule(step, steps, 0.05, 0.6)
        chosen = torch.randint(len(latents), (32,))
        data, told = latents[chosen], states[chosen]
        told = torch.where(torch.rand(32, 1, 1) < 0.1, torch.zeros_like(told), told)
        times = torch.sigmoid(torch.randn(32))
        loss = module(data, torch.randn_like(data), times, told)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
