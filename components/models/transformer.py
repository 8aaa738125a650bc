"""The diffusion transformer: PixArt's blocks (Chen et al. 2024, "PixArt-alpha"), started as DiT's adaLN-zero."""

from __future__ import annotations

from typing import Any

from components.contracts.recipe import Denoiser

# what stands in for PixArt's size conditions, which its pipeline passes at 1024 pixels only
NO_CONDITIONS: dict[str, None] = {"resolution": None, "aspect_ratio": None}


def make_transformer(config: Denoiser, latent_channels: int, latent_size: int, text_width: int) -> Any:
    """A fresh ``PixArtTransformer2DModel`` for latents ``[N, latent_channels, latent_size, latent_size]``.

    Every block attends to all patches, then to the prompt's tokens, and is modulated by the time (adaLN-single).
    Positions are sine waves, so that grids of other shapes than the square one have theirs too.
    """
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=latent_size,
        patch_size=config.patch,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=config.depth,
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        cross_attention_dim=config.width,
        caption_channels=text_width,
        use_additional_conditions=False,
    )
    start_as_identity(model)
    return model


def start_as_identity(model: Any) -> None:
    """Every block starts as the identity and the prediction at zero.

    Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", sec. 3.2 (adaLN-zero) and its code: Xavier
    uniform matrices, time and caption embeddings of deviation 0.02, gates at zero. In PixArt a gate is the sum of a
    table of the block and a projection of the time that all blocks share, so both start at zero; its
    cross-attention has no gate, so its output does (Chen et al. 2024, sec. 2.3).
    """
    import torch
    from torch import nn

    init = nn.init
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if "timestep_embedder" in name or name.startswith("caption_projection"):
                init.normal_(module.weight, std=0.02)
            else:
                init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
    patches = model.pos_embed.proj  # a convolution that is a matrix of patches
    init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    init.zeros_(patches.bias)
    silent = [model.adaln_single.linear.weight, model.scale_shift_table, model.proj_out.weight]
    for block in model.transformer_blocks:
        silent += [block.scale_shift_table, block.attn2.to_out[0].weight]
    with torch.no_grad():
        for weight in silent:
            weight.zero_()
