"""What the size dial stands for: parameters and floating-point operations of every size, counted on the models.

``python -m components.models.sizes`` prints the table of docs/training.md. Nothing is allocated: models are built on
torch's meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.contracts.sizes import Size

TOKENS, TEXT_WIDTH, VOCABULARY = 77, 768, 49_408  # of a prompt as CLIP ViT-L reads it
SIDE, GRID, CHANNELS = 256, 32, 4  # of a picture and its latents, at a factor of 8
SMALL_GRID, SMALL_TOKENS = 8, 24  # of the embedded world: 32 pixels at a factor of 4


@dataclass(frozen=True)
class Cost:
    """Of one size of one network."""

    network: str
    size: str
    shape: str
    parameters: int
    flops: int  # of a forward pass of one picture (or prompt), multiplication and addition counted apart
    small_flops: int | None  # the same on a grid of the embedded world


def costs() -> Iterator[Cost]:
    """Of every size of denoisers, autoencoder and text encoder."""
    for family in ("unet", "dit"):
        for size in get_args(Size):
            yield denoiser_cost(Denoiser.model_validate({"family": family, "size": size}), size)
    for size in get_args(Size):
        yield _autoencoder_cost(Autoencoder.model_validate({"size": size}), size)
    for size in get_args(Size):
        yield _text_encoder_cost(TextEncoder.model_validate({"size": size}), size)


def denoiser_cost(config: Denoiser, size: str = "") -> Cost:
    """Of a denoiser on latents of 256 pixels, and of the embedded world."""
    import torch

    from components.models.denoiser import make_denoiser, predict

    def run(grid: int, tokens: int) -> int:
        noisy, states = torch.empty(1, CHANNELS, grid, grid), torch.empty(1, tokens, TEXT_WIDTH)
        mask = torch.ones(1, tokens, dtype=torch.bool)
        return flops_of(lambda: predict(model, noisy, torch.empty(1), states, mask))

    with torch.device("meta"):
        model = make_denoiser(config, CHANNELS, GRID, TEXT_WIDTH)
        flops = run(GRID, TOKENS)
        small = run(SMALL_GRID, SMALL_TOKENS) if SMALL_GRID % config.downsampling == 0 else None
    if config.family == "dit":
        shape = f"{config.depth} blocks of {config.width}, {config.heads} heads, patch {config.patch}"
    else:
        shape = f"{'-'.join(map(str, config.channels))}, {config.layers_per_block} a level"
    return Cost("U-Net" if config.family == "unet" else "DiT", size, shape, parameters_of(model), flops, small)


def _autoencoder_cost(config: Autoencoder, size: str) -> Cost:
    """Encoder and decoder together."""
    import torch

    from components.models.autoencoder import encode_moments, make_autoencoder

    with torch.device("meta"):
        model = make_autoencoder(config, SIDE)
        pixels = torch.empty(1, 3, SIDE, SIDE)
        flops = flops_of(lambda: model.decode(encode_moments(model, pixels)[0]))
    shape = f"{'-'.join(map(str, config.channels))}, {config.latent_channels} channels, factor {config.downsampling}"
    return Cost("autoencoder", size, shape, parameters_of(model), flops, None)


def _text_encoder_cost(config: TextEncoder, size: str) -> Cost:
    """Parameters of both towers, operations of the text tower on one prompt."""
    import torch

    from components.models.text_encoder import make_clip

    class Tokens:
        """What is read of a tokenizer."""

        bos_token, bos_token_id, eos_token_id, pad_token_id, model_max_length = "", 0, 1, 1, TOKENS

        def __len__(self) -> int:
            return VOCABULARY

    with torch.device("meta"):
        model = make_clip(config, Tokens(), SIDE)
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
        flops = flops_of(lambda: model.text_model(input_ids=ids))
    shape = f"{config.layers}+{config.image_layers} layers of {config.width}, patch {config.patch}"
    return Cost("CLIP", size, shape, parameters_of(model), flops, None)


def parameters_of(model: Any) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in model.parameters())


def flops_of(run: Callable[[], Any]) -> int:
    """Floating-point operations of a call: those of matrix products, convolutions and attention."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def table(rows: Iterator[Cost] | None = None) -> str:
    """The costs as a Markdown table."""
    lines = [
        "| network | size | shape | parameters | GFLOP at 256 px | GFLOP at 32 px |",
        "|---|---|---|---:|---:|---:|",
    ]
    for cost in rows or costs():
        small = "" if cost.small_flops is None else f"{cost.small_flops / 1e9:.3g}"
        lines.append(
            f"| {cost.network} | {cost.size} | {cost.shape} | {cost.parameters / 1e6:.1f} M | {cost.flops / 1e9:.3g} | "
            f"{small} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
