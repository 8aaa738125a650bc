"""A small picture drawn from the caption alone, by which a text encoder learns what lies where.

The contrastive loss tells the captions of a batch apart, and those nearly always differ in what they name: which of
two objects stands left of the other hardly ever decides it, and is not learnt ("bag of words": Yuksekgonul et al. 2023,
"When and why vision-language models behave like bags-of-words, and what to do about it?"). What a caption says of the
places does decide what the picture looks like on average.
"""

from __future__ import annotations

from torch import Tensor, nn


class Thumbnail(nn.Module):
    """Pictures ``[N, 3, side, side]`` from the text tower's states of whole captions, ``[N, width]``.

    Only training needs it: it is in the checkpoints and not in the finished text encoder.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 3 * side * side))

    def forward(self, states: Tensor) -> Tensor:
        drawn: Tensor = self.layers(states)
        return drawn.view(len(states), 3, self.side, self.side)
