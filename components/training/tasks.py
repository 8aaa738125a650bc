"""The three trainings: text encoder, autoencoder and denoiser, each a task of :mod:`components.training.loop`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Autoencoder, Denoiser, TextEncoder
from components.models import autoencoder as autoencoders
from components.models import denoiser as denoisers
from components.models import text_encoder as encoders
from components.models.pipeline import NOISE_LEVELS, alpha_bars
from components.training import objective
from components.training.samples import load_captions, load_ids, load_latents, load_pictures
from components.training.texts import load_states

_STATES_LIMIT = 1 << 29  # bytes of text states that are worth keeping in memory


def _pixels(pictures: np.ndarray[Any, Any]) -> Tensor:
    """uint8 ``[N, H, W, 3]`` to float ``[N, 3, H, W]`` in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _square(pixels: Tensor, side: int) -> Tensor:
    """Pictures of another shape squeezed into ``side`` x ``side``, as the judge's extractor looks at them."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp_(-1, 1)


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient of a row is summed over all ranks that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


class Contrast(nn.Module):
    """CLIP with its contrastive loss over the global batch."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        # DeepSpeed cannot send a parameter without dimensions: the scale is kept here until the end
        self.log_scale = nn.Parameter(clip.logit_scale.detach().reshape(1).clone())
        del clip.logit_scale
        self.model = clip

    def finished(self) -> Any:
        """The CLIP model with its scale again."""
        self.model.logit_scale = nn.Parameter(self.log_scale.detach().reshape(()))
        return self.model

    def forward(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        seen = self.model.vision_model(pixel_values=pixels).pooler_output
        read = self.model.text_model(input_ids=ids).pooler_output
        images = nn.functional.normalize(self.model.visual_projection(seen).float(), dim=-1)
        texts = nn.functional.normalize(self.model.text_projection(read).float(), dim=-1)
        everyone: Tensor = _Gather.apply(torch.stack([images, texts], 1))  # type: ignore[no-untyped-call]
        # never above 100, as in the paper
        scale = self.log_scale.clamp(max=4.6052).exp()
        first = dist.get_rank() * len(images)
        loss = objective.contrastive_loss(images, texts, everyone[:, 0], everyone[:, 1], scale, first)
        return {"loss": loss, "scale": scale.detach()}


@dataclass
class TextEncoderTask:
    """CLIP on pictures and token rows of the dataset's training split."""

    config: TextEncoder
    dataset: Path
    image_size: int
    start: Path | None = None
    name: str = "text encoder"
    _data: Any = field(default=None, repr=False)

    def build(self) -> nn.Module:
        if self.start:
            return Contrast(encoders.load_clip(self.start))
        tokenizer = encoders.load_tokenizer(self.dataset / "tokenizer")
        return Contrast(encoders.make_clip(self.config, tokenizer, self.image_size))

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        tokenizer = encoders.load_tokenizer(self.dataset / "tokenizer")
        ids = load_captions(self.dataset, tokenizer)
        # attention is causal and reads up to the end token (which may also pad): the rest need not be computed
        longest = min(int((ids != tokenizer.pad_token_id).sum(1).max()) + 1, ids.shape[1])
        self._data = load_pictures(self.dataset), ids[:, :longest].contiguous()
        return list(self._data[0].sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        pictures, ids = self._data
        pixels = _square(_pixels(pictures.take(indices[mine])), self.image_size)
        return {"pixels": pixels, "ids": ids[indices[mine]]}


class Rebuild(nn.Module):
    """AutoencoderKL with its loss."""

    def __init__(self, model: Any, kl_weight: float) -> None:
        super().__init__()
        self.model, self.kl_weight = model, kl_weight

    def finished(self) -> Any:
        """The autoencoder."""
        return self.model

    def forward(self, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        moments = self.model.encoder(pixels).float()
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-30.0, 20.0)  # as AutoencoderKL does
        rebuilt = self.model.decoder(objective.sample_gaussian(mean, logvar, noise))
        loss, error = objective.autoencoder_loss(rebuilt, pixels, mean, logvar, self.kl_weight)
        return {"loss": loss, "psnr": torch.tensor(objective.psnr(float(error.detach())))}


@dataclass
class AutoencoderTask:
    """The autoencoder on pictures of the training split."""

    config: Autoencoder
    dataset: Path
    image_size: int
    start: Path | None = None
    name: str = "autoencoder"
    _data: Any = field(default=None, repr=False)

    def build(self) -> nn.Module:
        if self.start:
            return Rebuild(autoencoders.load_autoencoder(self.start), self.config.kl_weight)
        return Rebuild(autoencoders.make_autoencoder(self.config, self.image_size), self.config.kl_weight)

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        self._data = load_pictures(self.dataset)
        return list(self._data.sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        factor = autoencoders.factor_of(self.config)
        grid = (side // factor for side in self._data.shape(indices)[:2])
        noise = torch.randn(len(indices), self.config.latent_channels, *grid, generator=draws)
        return {"pixels": _pixels(self._data.take(indices[mine])), "noise": noise[mine]}


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
