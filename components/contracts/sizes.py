"""One dial a network: ``size`` stands for the keys below, and a key that the recipe gives itself wins.

From two processor cores (``xs``, the defaults of a recipe without a dial) to production. The transformers are those
of Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", table 1 (S, B, L, XL); the largest U-Net has the
widths of Stable Diffusion 1.5 (Rombach et al. 2022). Rates fall with width, and averages grow longer, as trainings do.
"""

from __future__ import annotations

from typing import Any, Literal

Size = Literal["xs", "s", "b", "l", "xl"]
Keys = dict[str, Any]

_RATES: dict[str, Keys] = {
    "xs": {"learning_rate": 1e-3, "muon_rate": 0.02, "ema_decay": 0.998},
    "s": {"learning_rate": 5e-4, "muon_rate": 0.02, "ema_decay": 0.999},
    "b": {"learning_rate": 3e-4, "muon_rate": 0.02, "ema_decay": 0.9995},
    "l": {"learning_rate": 2e-4, "muon_rate": 0.01, "ema_decay": 0.9999},
    "xl": {"learning_rate": 1e-4, "muon_rate": 0.01, "ema_decay": 0.9999},
}


def _unet(channels: tuple[int, ...], layers: int, heads: int, groups: int, cross: tuple[bool, ...]) -> Keys:
    return {
        "channels": channels, "layers_per_block": layers, "heads": heads, "norm_groups": groups,
        "cross_attention": cross,
    }  # fmt: skip


def _dit(width: int, depth: int, heads: int, patch: int = 2) -> Keys:
    return {"width": width, "depth": depth, "heads": heads, "patch": patch}


_NETWORKS: dict[str, dict[str, Keys]] = {
    "unet": {
        "xs": _unet((64, 128), 1, 4, 16, ()),
        "s": _unet((128, 192, 256), 1, 4, 32, (False, True, True)),
        "b": _unet((192, 384, 576), 2, 8, 32, (False, True, True)),
        "l": _unet((256, 512, 768, 768), 2, 8, 32, (True, True, True, False)),
        "xl": _unet((320, 640, 1280, 1280), 2, 8, 32, (True, True, True, False)),
    },
    "dit": {
        "xs": _dit(192, 6, 4),
        "s": _dit(384, 12, 6),
        "b": _dit(768, 12, 12),
        "l": _dit(1024, 24, 16),
        "xl": _dit(1152, 28, 16),
    },
}

DENOISERS: dict[str, dict[str, Keys]] = {
    family: {size: {**keys, **_RATES[size]} for size, keys in sizes.items()} for family, sizes in _NETWORKS.items()
}


def _autoencoder(channels: tuple[int, ...], layers: int, groups: int, latent: int, rate: float, muon: float) -> Keys:
    return {
        "channels": channels, "layers_per_block": layers, "norm_groups": groups, "latent_channels": latent,
        "attention": len(channels) > 3, "learning_rate": rate, "muon_rate": muon,
    }  # fmt: skip


AUTOENCODERS: dict[str, Keys] = {
    "xs": _autoencoder((16, 32, 64), 1, 8, 4, 4e-3, 0.03),
    "s": _autoencoder((32, 64, 128), 1, 16, 4, 2e-3, 0.03),
    "b": _autoencoder((64, 128, 256, 256), 2, 32, 8, 1e-3, 0.02),
    "l": _autoencoder((96, 192, 384, 384), 2, 32, 16, 5e-4, 0.02),
    "xl": _autoencoder((128, 256, 512, 512), 2, 32, 16, 2e-4, 0.02),
}


def _text_encoder(width: int, layers: int, image_layers: int, heads: int, patch: int, rate: float) -> Keys:
    return {
        "width": width, "layers": layers, "image_layers": image_layers, "heads": heads, "patch": patch,
        "learning_rate": rate,
    }  # fmt: skip


TEXT_ENCODERS: dict[str, Keys] = {
    "xs": _text_encoder(128, 3, 3, 4, 8, 1e-3),
    "s": _text_encoder(256, 6, 6, 4, 8, 1e-3),
    "b": _text_encoder(512, 12, 12, 8, 16, 5e-4),
    "l": _text_encoder(768, 12, 12, 12, 16, 5e-4),
    "xl": _text_encoder(1024, 24, 24, 16, 16, 4e-4),
}


def with_size(data: Any, sizes: dict[str, Keys]) -> Any:
    """The given keys of a section over those that its ``size`` stands for; what is no size is left to the checks."""
    size = data.get("size") if isinstance(data, dict) else None
    return {**sizes[size], **data} if isinstance(size, str) and size in sizes else data
