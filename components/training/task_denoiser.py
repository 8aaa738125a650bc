"""Training the denoiser: a task of :mod:`components.training.loop`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Denoiser
from components.models import denoiser as denoisers
from components.models import text_encoder as encoders
from components.models.pipeline import Generator
from components.models.samplers import NOISE_LEVELS, alpha_bars, make_scheduler
from components.training import objective
from components.training.alignment import Alignment, Views, features_of
from components.training.captions import load_all_captions
from components.training.held_out import fixed_times
from components.training.samples import load_ids, load_latents, load_pictures, table
from components.training.texts import load_states

_STATES_LIMIT = 1 << 29  # bytes of text states that are worth keeping in memory
_SHEET_STEPS, _SHEET_GUIDANCE = 8, 2.0


class Denoise(nn.Module):
    """The denoiser with the loss of its objective.

    Args:
        model: U-Net or transformer. features: width of CLIP's view of the clean picture, where ``align_weight`` asks
            for alignment with it.
    """

    def __init__(self, model: Any, config: Denoiser, features: int | None = None) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.alignment: Alignment | None = None
        self._middle: Tensor
        if config.objective != "flow":
            levels = alpha_bars(config.objective == "v" and config.zero_terminal_snr)
            self.register_buffer("alpha_bars", levels, persistent=False)
        if config.align_weight and features:
            self.alignment = Alignment(denoisers.middle_width(config), features)
            denoisers.middle(model, config).register_forward_hook(self._keep_middle)

    def finished(self) -> Any:
        """The denoiser."""
        return self.model

    def fit_to(self, device: torch.device) -> None:
        """Choose what trains fastest on the device."""
        denoisers.fit_to(self.model, device)

    def enable_gradient_checkpointing(self) -> None:
        """Compute the blocks' activations again in the backward pass, instead of keeping them."""
        self.model.enable_gradient_checkpointing()

    def forward(
        self, data: Tensor, noise: Tensor, times: Tensor, states: Tensor, mask: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        kind = self.config.objective
        if kind == "flow":
            noisy, levels = objective.interpolate(data, noise, times), times * NOISE_LEVELS
        else:
            levels = (times * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)
            alpha_bar = self.alpha_bars[levels]  # type: ignore[index]
            noisy = objective.diffuse(data, noise, alpha_bar)
        predicted = denoisers.predict(self.model, noisy, levels, states, mask)
        if kind == "flow":
            loss = objective.flow_loss(predicted, data, noise)
        else:
            loss = objective.diffusion_loss(predicted, data, noise, alpha_bar, kind, self.config.min_snr_gamma)
        if self.alignment is None or seen is None:
            return {"loss": loss}
        unlike = self.alignment(self._map(noisy), seen)
        return {"loss": loss + self.config.align_weight * unlike, "denoising": loss.detach(), "unlike": unlike.detach()}

    def _keep_middle(self, block: nn.Module, given: Any, made: Tensor) -> None:
        self._middle = made

    def _map(self, noisy: Tensor) -> Tensor:
        """The middle's output as a map ``[N, width, h, w]``; a transformer's tokens are in reading order."""
        if self._middle.ndim == 4:
            return self._middle
        rows = noisy.shape[-2] // self.config.patch
        return self._middle.transpose(1, 2).reshape(len(noisy), self._middle.shape[-1], rows, -1)


@dataclass
class DenoiserTask:
    """The denoiser on latents of a split, conditioned on the states of their captions."""

    config: Denoiser
    dataset: Path
    latents: Path
    clip: Path  # of the text encoder: CLIP or T5
    tokenizer: Path
    scaling: float  # of latents, to unit variance
    latent_channels: int
    latent_size: int
    start: Path | None = None
    texts: Path | None = None  # states of the captions, encoded beforehand
    name: str = "denoiser"
    split: str = "train"
    sampled: bool = True  # one of a picture's captions at every showing; False: its own
    autoencoder: Path | None = None  # for the sample sheet
    _data: Any = field(default=None, repr=False)

    def held_out(self) -> DenoiserTask:
        """The same on pictures that are never trained on, with captions and at fixed times."""
        return replace(self, split="holdout", sampled=False, _data=None)

    def build(self) -> nn.Module:
        features = features_of(self.clip) if self.config.align_weight else None
        if self.start:
            model = denoisers.load_denoiser(self.start)
        else:
            width = encoders.saved_width(self.clip)
            model = denoisers.make_denoiser(self.config, self.latent_channels, self.latent_size, width)
        return Denoise(model, self.config, features)

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        tokenizer = encoders.load_tokenizer(self.tokenizer)
        captions = load_all_captions(self.dataset, tokenizer, self.split, self.sampled)
        ids, end = captions.ids, int(tokenizer.eos_token_id)
        mean, logvar = load_latents(self.latents, self.latent_channels, self.split)
        same = load_ids(self.dataset, self.split)
        _require_ids("latents", load_ids(self.latents, self.split), same)
        tower = encoders.load_text_tower(self.clip).to(device)
        empty = [part[0].cpu() for part in encoders.read_prompts(tokenizer, tower, [""])]
        states = None
        if self.texts:
            named, states = load_states(self.texts, ids.shape[1], self.split, len(ids))
            _require_ids("text states", named, same)
        elif ids.numel() * encoders.text_width(tower) * 2 <= _STATES_LIMIT:
            pieces: list[Tensor] = list(torch.split(ids, 1024))
            states = torch.cat([encoders.text_states(tower, p.to(device), end=end).cpu().half() for p in pieces])
        views = None
        if self.config.align_weight and self.split == "train":
            views = Views(self.clip, load_pictures(self.dataset, self.split), device)
        self._data = mean, logvar, captions, states, empty, tower, end, device, views
        return list(mean.sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        mean, logvar, captions, _, empty, *_, views = self._data
        count, shape = len(indices), (len(indices), *mean.shape(indices))
        times = self._times(count, draws)
        noise, jitter = torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)
        dropped = torch.rand(count, generator=draws) < (self.config.caption_dropout if self.split == "train" else 0)
        chosen = torch.from_numpy(captions.rows(indices, draws)[mine])
        sampled = objective.sample_gaussian(mean.take(indices[mine]), logvar.take(indices[mine]), jitter[mine])
        states, mask = self._read(chosen)
        without = dropped[mine]
        states = torch.where(without.view(-1, 1, 1).to(states.device), empty[0].to(states.device), states)
        batch = {
            "data": sampled * self.scaling, "noise": noise[mine], "times": times[mine], "states": states,
            "mask": torch.where(without.view(-1, 1), empty[1], mask),
        }  # fmt: skip
        if views is not None:
            batch["seen"] = views.take(indices[mine])
        return batch

    def sheet(self, module: nn.Module, count: int) -> tuple[Any, list[str]]:
        """Pictures uint8 ``[count, H, W, 3]`` of held-out captions and fixed seeds, drawn by the module as it is, and
        the captions. Needs ``autoencoder``.
        """
        from components.models.autoencoder import load_autoencoder

        assert self.autoencoder is not None, "pictures cannot be drawn without an autoencoder"
        *_, tower, _, device, _ = self._data
        autoencoder = load_autoencoder(self.autoencoder).to(device)
        autoencoder.register_to_config(scaling_factor=self.scaling)
        tokenizer, chosen = encoders.load_tokenizer(self.tokenizer), self.config
        scheduler = make_scheduler(chosen.objective, chosen.time_shift, chosen.zero_terminal_snr)
        prompts = self._prompts(count)
        generator = Generator(tokenizer, tower, module.model, autoencoder, scheduler, device)
        seeds = range(len(prompts))
        drawn = generator.generate(prompts, list(seeds), steps=_SHEET_STEPS, guidance_scale=_SHEET_GUIDANCE)
        return drawn, prompts

    def _prompts(self, count: int) -> list[str]:
        for split in ("holdout", "train"):
            told: Sequence[str] = table(self.dataset, ["caption"], split)["caption"].to_pylist()
            if told:
                step = np.linspace(0, len(told) - 1, min(count, len(told))).astype(int)
                return [told[i] or "" for i in step]
        return []

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States and mask of these rows of the captions."""
        _, _, captions, states, _, tower, end, device, _ = self._data
        ids = captions.ids[rows]
        found = encoders.text_states(tower, ids.to(device), end=end) if states is None else states[rows].float()
        return found, encoders.token_mask(ids, end)

    def _times(self, count: int, draws: torch.Generator) -> Tensor:
        """``[count]`` in 0..1: logit-normal and shifted for flow matching, else uniform; fixed where held out."""
        if self.split != "train":
            return fixed_times(count)
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
