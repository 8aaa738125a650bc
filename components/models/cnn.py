"""cnn: the classic first baseline, a frozen text encoder and a convolutional decoder from prompt to picture.

It learns the mean (L2) or median (L1) of the pictures that a prompt may mean, so it blurs what the prompt leaves
open: that is what the other families are held against.
"""

from __future__ import annotations

from torch import Tensor, nn

from components.contracts.recipe import Cnn
from components.models.convolutions import Condition, Decoder
from components.models.reading import Reading

_WIDTH = 256  # of the condition


class CnnNetwork(nn.Module):
    """Prompts to pictures, without chance.

    Args:
        config: the recipe's section. side: of the pictures. words, sentence: widths of the reading.
    """

    noise_size = 0

    def __init__(self, config: Cnn, side: int, words: int, sentence: int) -> None:
        super().__init__()
        self.condition = Condition(words, sentence, _WIDTH)
        self.decoder = Decoder(_WIDTH, side, config.channels, config.max_channels)

    def forward(self, reading: Reading, noise: Tensor) -> Tensor:
        """Pictures ``[N, 3, side, side]`` in -1..1; ``noise`` is ``[N, 0]`` and not read."""
        pictures: Tensor = self.decoder(self.condition(reading))
        return pictures
