"""Pictures that are drawn step by step, side by side: what is asked for, and what is underway.

A batch is a list of drawings, each at a step of its own. Drawings join and leave it between steps; a model's ``step``
takes all of them one step on. :func:`draw` runs a batch from its beginning to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from components.contracts.errors import InputError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Style:
    """A LoRA: ``key`` names its weights, e.g. by their digest; ``folder`` holds them, as ``save_lora`` wrote them."""

    key: str
    folder: Path


@dataclass(frozen=True)
class Picture:
    """One picture that is asked for.

    Args:
        seed: 0 .. 2**63-1.
        guidance_scale: 1 means without guidance (Ho & Salimans 2022, eq. 6 with w = scale - 1).
        negative_prompt: what to lead away from.
        sampler: one of the model's; None is its own.
        width, height: in pixels; 0 and 0 are the model's own.

    Raises:
        InputError: a number is out of range.
    """

    prompt: str
    seed: int = 0
    steps: int = 1
    guidance_scale: float = 1.0
    negative_prompt: str = ""
    sampler: str | None = None
    width: int = 0
    height: int = 0
    style: Style | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guidance_scale < 1:
            raise InputError(
                f"steps={self.steps}, guidance_scale={self.guidance_scale}",
                expected="both at least 1",
                remedy="raise them",
            )

    @property
    def guided(self) -> bool:
        """Whether the denoiser is asked twice a step: with the prompt and with the negative prompt."""
        return self.guidance_scale > 1


@dataclass(eq=False)
class Drawing:
    """A picture underway. ``step`` counts the steps done; ``inside`` is the model's own affair."""

    picture: Picture
    steps: int
    size: tuple[int, int]  # width and height, in pixels
    rows: int  # of the network's batch, at every step
    inside: Any = None
    step: int = 0

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps


class Stepping(Protocol):
    """What draws step by step; see :class:`components.models.families.ImageGenerator`."""

    def begin(self, pictures: Sequence[Picture]) -> list[Drawing]:
        """Read the prompts and draw the noise."""
        ...

    def step(self, drawings: Sequence[Drawing]) -> None:
        """Take every drawing one step on."""
        ...

    def finish(self, drawings: Sequence[Drawing]) -> Pixels:
        """The pictures of drawings that are done."""
        ...


def draw(model: Stepping, pictures: Sequence[Picture]) -> Pixels:
    """Pictures of one size from beginning to end, uint8 ``[N, H, W, 3]``."""
    drawings = model.begin(pictures)
    while left := [drawing for drawing in drawings if not drawing.done]:
        model.step(left)
    return model.finish(drawings)


def pictures_of(
    prompts: Sequence[str],
    seeds: Sequence[int],
    negative_prompts: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    **alike: Any,
) -> list[Picture]:
    """One :class:`Picture` a prompt.

    Args:
        size: width and height, None for the model's own. alike: other fields, the same in all.

    Raises:
        InputError: lengths differ, or a number is out of range.
    """
    negatives = [""] * len(prompts) if negative_prompts is None else list(negative_prompts)
    if not len(prompts) == len(seeds) == len(negatives):
        raise InputError(
            f"{len(prompts)} prompts, {len(seeds)} seeds and {len(negatives)} negative prompts",
            remedy="pass one seed and one negative prompt for each prompt",
        )
    width, height = size or (0, 0)
    return [
        Picture(prompt, int(seed), negative_prompt=negative, width=width, height=height, **alike)
        for prompt, seed, negative in zip(prompts, seeds, negatives, strict=True)
    ]


def size_of(picture: Picture, own: int, granularity: int) -> tuple[int, int]:
    """Width and height of a picture, by a model whose own side is ``own`` and whose sides are multiples of
    ``granularity`` (0: its own side only).

    Raises:
        InputError: the model cannot draw that size.
    """
    size = (picture.width or own, picture.height or own)
    if size == (own, own):
        return size
    if not granularity or any(side < granularity or side % granularity for side in size):
        raise InputError(
            f"The size {size[0]}x{size[1]} cannot be drawn",
            expected=f"multiples of {granularity} pixels" if granularity else f"{own}x{own}, the model's own size",
            remedy="choose another size",
        )
    return size


def noise_of(picture: Picture, shape: tuple[int, ...]) -> Any:
    """Standard normal numbers of the picture's seed, fp32 of ``shape``, on the CPU whatever the device, so that a
    seed is the same noise everywhere."""
    import torch

    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(picture.seed))
