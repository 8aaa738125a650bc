"""Small models of the families that draw in one pass, with random weights, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from components.contracts.recipe import Autoencoder, Cnn, Denoiser, Gan, TextEncoder, Vae
from components.models.autoencoder import make_autoencoder
from components.models.denoiser import make_denoiser
from components.models.one_pass import Design, Saved, make_network, save_model
from components.models.pipeline import save_pipeline
from components.models.text_encoder import load_tokenizer, make_clip, text_tower
from tests.components.training.datasets import write_tokenizer

DIFFUSION = Denoiser(channels=(16, 32), norm_groups=4, heads=2)
CAPTIONS = ["a small red circle on a white background", "a large blue star, top left"]
SECTIONS: dict[str, Any] = {
    "cnn": Cnn(channels=8, max_channels=16),
    "vae": Vae(channels=8, max_channels=16, latent=4),
    "gan": Gan(channels=8, discriminator_channels=8, noise=6, condition=5),
}
WORDS = 16  # width of the text encoder


def save_diffusion(folder: Path, seed: int = 0, side: int = 16) -> None:
    """Write a diffusers folder of random weights below ``folder``, of the name ``model``."""
    write_tokenizer(folder / "made", CAPTIONS, 300, 12)
    tokenizer = load_tokenizer(folder / "made")
    torch.manual_seed(seed)
    clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), tokenizer, side)
    autoencoder = make_autoencoder(Autoencoder(channels=(8, 16), norm_groups=4), side)
    denoiser = make_denoiser(DIFFUSION, 4, side // 2, 32)
    for weight in denoiser.parameters():  # what starts at zero gets weights, so that pictures differ
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    save_pipeline(folder / "model", text_tower(clip), tokenizer, autoencoder, denoiser.eval(), scaling=0.7)


def save_family(folder: Path, family: str, seed: int = 0, side: int = 16) -> None:
    """Write a model folder of this family below ``folder``."""
    torch.manual_seed(seed)
    write_tokenizer(folder / "made" / "tokenizer", CAPTIONS, 300, 24)
    tokenizer = load_tokenizer(folder / "made" / "tokenizer")
    clip = make_clip(TextEncoder(width=WORDS, layers=1, image_layers=1, heads=2), tokenizer, side)
    for weight in clip.text_model.parameters():  # prompts must differ by more than rounding
        weight.data.mul_(3)
    network = make_network(Design(SECTIONS[family], side, WORDS, WORDS))
    for name, weight in network.named_parameters():
        if not weight.any() and name.endswith("weight"):  # what starts at zero
            torch.nn.init.normal_(weight, std=0.3)
    design = Design(SECTIONS[family], side, WORDS, WORDS)
    Saved(design, network, {}).save_pretrained(folder / "made" / "network")
    save_model(folder / "model", folder / "made" / "network", clip, tokenizer)
