"""Aspect-ratio buckets: the few sizes that the pictures of a dataset have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from components.contracts.recipe import Recipe

Size = tuple[int, int]  # width, height in pixels


def step_of(recipe: Recipe) -> int:
    """What both sides of every picture are a multiple of: the down-sampling of autoencoder and denoiser, and
    the patch of the text encoder's picture tower."""
    factor = recipe.train.autoencoder.downsampling * recipe.train.denoiser.downsampling
    return math.lcm(factor, recipe.train.text_encoder.patch)


def bucket_sizes(image_size: int, ratios: Sequence[float], step: int = 8) -> tuple[Size, ...]:
    """Sizes of about ``image_size ** 2`` pixels for these aspect ratios (width / height), each once, in order.

    Args:
        image_size: a multiple of ``step``; ratio 1 gives exactly this square.
        ratios: each above 0. step: what both sides are a multiple of, at least ``step`` each.
    """
    sizes = []
    for ratio in ratios:
        width = max(step, round(image_size * math.sqrt(ratio) / step) * step)
        height = max(step, round(image_size / math.sqrt(ratio) / step) * step)
        sizes.append((width, height))
    return tuple(dict.fromkeys(sizes))


def nearest(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to that of the picture, as a factor; the first of equals."""
    ratio = math.log(width / height)
    return min(sizes, key=lambda size: abs(ratio - math.log(size[0] / size[1])))
