"""vae: a conditional variational autoencoder (Sohn, Lee and Yan 2015, "Learning Structured Output Representation
using Deep Conditional Generative Models", eq. 4): q(z|x,c) and p(x|z,c), with p(z|c) learned or N(0, 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from components.contracts.recipe import Vae
from components.models.convolutions import Condition, Decoder, Encoder
from components.models.reading import Reading

_WIDTH = 256
_LOGVAR = 8.0  # largest size of a log-variance


class VaeNetwork(nn.Module):
    """Prompts and noise to pictures; in training also pictures to the posterior.

    Args:
        config: the recipe's section. side: of the pictures. words, sentence: widths of the reading.
    """

    def __init__(self, config: Vae, side: int, words: int, sentence: int) -> None:
        super().__init__()
        self.noise_size = config.latent
        self.condition = Condition(words, sentence, _WIDTH)
        self.encoder = Encoder(side, config.channels, config.max_channels)
        self.posterior = nn.Sequential(
            nn.Linear(self.encoder.features + _WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 2 * config.latent)
        )
        learned = config.prior == "learned"
        self.prior = (
            nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 2 * config.latent))
            if learned
            else None
        )
        self.join = nn.Linear(_WIDTH + config.latent, _WIDTH)
        self.decoder = Decoder(_WIDTH, side, config.channels, config.max_channels)

    def priors(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of p(z|c), each fp32 ``[N, latent]``."""
        if self.prior is None:
            zeros = torch.zeros(len(condition), self.noise_size, device=condition.device)
            return zeros, zeros
        return _moments(self.prior(condition))

    def posteriors(self, pictures: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x,c), each fp32 ``[N, latent]``."""
        return _moments(self.posterior(torch.cat([self.encoder(pictures), condition.to(pictures.dtype)], 1)))

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        """The mean of p(x|z,c): pictures ``[N, 3, side, side]`` in -1..1."""
        joined = nn.functional.silu(self.join(torch.cat([condition.float(), z], 1)))
        pictures: Tensor = self.decoder(joined)
        return pictures

    def forward(self, reading: Reading, noise: Tensor) -> Tensor:
        """Pictures of the prior's sample that ``noise`` ``[N, latent]``, standard normal, picks."""
        condition = self.condition(reading)
        mean, logvar = self.priors(condition)
        return self.decode(mean + torch.exp(0.5 * logvar) * noise, condition)


def _moments(both: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = both.float().chunk(2, 1)
    return mean, logvar.clamp(-_LOGVAR, _LOGVAR)
