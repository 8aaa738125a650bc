"""Training the denoiser: a task of :mod:`components.training.loop`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Denoiser
from components.models import denoiser as denoisers
from components.models import text_encoder as encoders
from components.models.pipeline import NOISE_LEVELS, alpha_bars
from components.training import objective
from components.training.samples import load_captions, load_ids, load_latents
from components.training.texts import load_states

_STATES_LIMIT = 1 << 29  # bytes of text states that are worth keeping in memory


class Denoise(nn.Module):
    """The denoiser with the loss of its objective."""

    def __init__(self, model: Any, config: Denoiser) -> None:
        super().__init__()
        self.model, self.config = model, config
        if config.objective != "flow":
            levels = alpha_bars(config.objective == "v" and config.zero_terminal_snr)
            self.register_buffer("alpha_bars", levels, persistent=False)

    def finished(self) -> Any:
        """The denoiser."""
        return self.model

    def forward(self, data: Tensor, noise: Tensor, times: Tensor, states: Tensor) -> dict[str, Tensor]:
        kind = self.config.objective
        if kind == "flow":
            noisy, levels = objective.interpolate(data, noise, times), times * NOISE_LEVELS
        else:
            levels = (times * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)
            alpha_bar = self.alpha_bars[levels]  # type: ignore[index]
            noisy = objective.diffuse(data, noise, alpha_bar)
        predicted = self.model(noisy, levels, encoder_hidden_states=states, return_dict=False)[0]
        if kind == "flow":
            return {"loss": objective.flow_loss(predicted, data, noise)}
        gamma = self.config.min_snr_gamma
        return {"loss": objective.diffusion_loss(predicted, data, noise, alpha_bar, kind, gamma)}


@dataclass
class DenoiserTask:
    """The denoiser on latents of the training split, conditioned on the states of their captions."""

    config: Denoiser
    dataset: Path
    latents: Path
    clip: Path
    tokenizer: Path
    scaling: float  # of latents, to unit variance
    latent_channels: int
    latent_size: int
    start: Path | None = None
    texts: Path | None = None  # states of the captions, encoded beforehand
    name: str = "denoiser"
    _data: Any = field(default=None, repr=False)

    def build(self) -> nn.Module:
        if self.start:
            return Denoise(denoisers.load_denoiser(self.start), self.config)
        width = encoders.load_clip(self.clip).config.text_config.hidden_size
        model = denoisers.make_denoiser(self.config, self.latent_channels, self.latent_size, width)
        return Denoise(model, self.config)

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        tokenizer = encoders.load_tokenizer(self.tokenizer)
        ids = load_captions(self.dataset, tokenizer)
        mean, logvar = load_latents(self.latents, self.latent_channels)
        same = load_ids(self.dataset)
        _require_ids("latents", load_ids(self.latents), same)
        tower = encoders.text_tower(encoders.load_clip(self.clip)).to(device)
        empty = encoders.text_states(tower, _empty_prompt(tokenizer).to(device))[0].cpu()
        width = empty.shape[-1]
        states = None
        if self.texts:
            named, states = load_states(self.texts, ids.shape[1])
            _require_ids("text states", named, same)
        elif ids.numel() * width * 2 <= _STATES_LIMIT:
            pieces: list[Tensor] = list(torch.split(ids, 1024))
            states = torch.cat([encoders.text_states(tower, piece.to(device)).cpu().half() for piece in pieces])
        self._data = mean, logvar, ids, states, empty, tower, device
        return list(mean.sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        mean, logvar, ids, states, empty, tower, device = self._data
        count, shape = len(indices), (len(indices), *mean.shape(indices))
        times = self._times(count, draws)
        noise, jitter = torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)
        dropped = torch.rand(count, generator=draws) < self.config.caption_dropout
        chosen = torch.from_numpy(indices[mine])
        sampled = objective.sample_gaussian(mean.take(indices[mine]), logvar.take(indices[mine]), jitter[mine])
        text = encoders.text_states(tower, ids[chosen].to(device)) if states is None else states[chosen].float()
        text = torch.where(dropped[mine].view(-1, 1, 1).to(text.device), empty.to(text.device), text)
        return {"data": sampled * self.scaling, "noise": noise[mine], "times": times[mine], "states": text}

    def _times(self, count: int, draws: torch.Generator) -> Tensor:
        """``[count]`` in 0..1: logit-normal and shifted for flow matching, else uniform."""
        if self.config.objective != "flow":
            return torch.rand(count, generator=draws)
        times = objective.logit_normal_times(count, self.config.time_mean, self.config.time_std, draws)
        return objective.shift_times(times, self.config.time_shift)


def _require_ids(what: str, found: list[str], expected: list[str]) -> None:
    if found != expected:
        raise ArtifactError(
            f"The {what} are not of this dataset's rows",
            expected="the same ids in the same order",
            remedy=f"delete the artifact of the {what} and run the same command again; it is made anew",
        )


def _empty_prompt(tokenizer: Any) -> Tensor:
    ids = tokenizer([""], padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")["input_ids"]
    return torch.as_tensor(ids)
