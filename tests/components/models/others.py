"""Tiny models of others, saved as their makers would: what a folder or a hub id holds."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any


def save_t5(folder: Path, seed: int = 0) -> Path:
    """A T5 with a decoder that nobody needs, and its tokenizer, which keeps upper and lower case apart."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    letters = [(letter, -3.0) for letter in f"▁,.{string.ascii_letters}{string.digits}"]
    words = [(f"▁{word}", -1.0) for word in ("a", "red", "blue", "star", "circle", "small", "large")]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters, *words], extra_ids=0)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():  # as large as after training; T5 starts with tiny ones
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return folder


def save_clip(folder: Path, image_size: int = 16, half: bool = False) -> Path:
    """A CLIP with its own tokenizer of single letters, and how it wants its pictures."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    pieces = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in f"{string.ascii_lowercase},")]
    vocab = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=40)
    tokenizer.save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    special = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    text = CLIPTextConfig(**tower, vocab_size=len(vocab), max_position_embeddings=40, **special)
    vision = CLIPVisionConfig(**tower, image_size=image_size, patch_size=8)
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))
    (model.half() if half else model).save_pretrained(folder)
    CLIPImageProcessor(image_mean=[0.4, 0.4, 0.4], image_std=[0.2, 0.2, 0.2]).save_pretrained(folder)
    return folder


def save_kl(folder: Path, **settings: Any) -> Path:
    """An AutoencoderKL as Stable Diffusion's, with its 1 x 1 convolutions around the latents; factor 2."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(2)
    blocks: dict[str, Any] = {
        "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16,
    }  # fmt: skip
    AutoencoderKL(**blocks, scaling_factor=0.5, **settings).save_pretrained(folder)
    return folder


def save_dc(folder: Path) -> Path:
    """An AutoencoderDC of factor 4 and 6 latent channels."""
    import torch
    from diffusers import AutoencoderDC

    torch.manual_seed(3)
    levels = {"block_out_channels": (6, 12, 12), "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), ())}
    settings: dict[str, Any] = {
        f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in levels.items()
    }
    AutoencoderDC(latent_channels=6, attention_head_dim=6, scaling_factor=0.41, **settings).save_pretrained(folder)
    return folder
