"""Personalization: a LoRA on a model's denoiser, trained on a few pictures. A task of :mod:`components.training.loop`.

It works from the finished model folder alone, of whatever family: pictures are encoded and captions are read by the
model's own parts when the training opens.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from components.contracts.errors import ArtifactError, TrainingError
from components.contracts.recipe import Adapter, Denoiser
from components.models.adapters import add_lora, save_lora
from components.models.autoencoder import encode_moments, load_autoencoder
from components.models.denoiser import load_denoiser
from components.models.text_encoder import load_text_tower, load_tokenizer, read_prompts
from components.training import objective
from components.training.personalize import part_of
from components.training.samples import load_pictures, table, to_pixels
from components.training.task_denoiser import Denoise

_OBJECTIVES = {"flow_prediction": "flow", "epsilon": "epsilon", "v_prediction": "v"}  # diffusers' names and ours
_ENCODED = 64  # pictures at once
SUBJECT, PRIOR = "subject_", "prior_"


class Personalise(nn.Module):
    """A denoiser with a LoRA, and the loss of subject and prior: ``L(subject) + prior_weight * L(prior)``.

    Ruiz et al. 2023, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", eq. 2.
    """

    def __init__(self, denoise: Denoise, prior_weight: float, pipeline: str) -> None:
        super().__init__()
        self.denoise, self.prior_weight, self.pipeline = denoise, prior_weight, pipeline

    def finished(self) -> Personalise:
        """Itself: see :meth:`save_pretrained`."""
        return self

    def fit_to(self, device: torch.device) -> None:
        """Choose what trains fastest on the device."""
        self.denoise.fit_to(device)

    def save_pretrained(self, folder: Path, safe_serialization: bool = True) -> None:
        """Write the LoRA alone, as diffusers does; always as safetensors."""
        save_lora(self.denoise.model, Path(folder), self.pipeline)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        subject = self.denoise(**_part(batch, SUBJECT))["loss"]
        if not (prior := _part(batch, PRIOR)):
            return {"loss": subject}
        kept = self.denoise(**prior)["loss"]
        return {"loss": subject + self.prior_weight * kept, "subject_loss": subject, "prior_loss": kept}


@dataclass
class AdapterTask:
    """A LoRA on the denoiser of ``model`` for the pictures of ``subject``.

    Args:
        model: diffusers folder. subject: dataset of the pictures and their captions. prior: pictures that the model
            drew of its own prompts, as ``draw_prior`` leaves them; None: nothing is preserved.
    """

    config: Adapter
    model: Path
    subject: Path
    prior: Path | None = None
    name: str = "adapter"
    _data: Any = field(default=None, repr=False)

    def build(self) -> nn.Module:
        denoiser = load_denoiser(part_of(self.model))
        add_lora(denoiser, self.config.rank, self.config.alpha, self.config.targets)
        return Personalise(
            Denoise(denoiser, objective_of(self.model)), self.config.prior_weight, pipeline_of(self.model)
        )

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        reader = _Reader(self.model, device)
        sides = {SUBJECT: reader.rows(self.subject)}
        if self.prior:
            sides[PRIOR] = reader.rows(self.prior)
        self._data = sides, reader.conditions([""]), objective_of(self.model)
        return [len(sides[SUBJECT])]

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        sides, _, _ = self._data
        made = self._batch(SUBJECT, indices, mine, draws)
        if PRIOR in sides:
            chosen = torch.randint(len(sides[PRIOR]), (len(indices),), generator=draws).numpy()
            made |= self._batch(PRIOR, chosen, mine, draws)
        return made

    def _batch(self, side: str, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        sides, empty, denoiser = self._data
        rows, count = sides[side], len(indices)
        times = _times(denoiser, count, draws)
        shape = (count, *rows.mean.shape[1:])
        noise, jitter = torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)
        dropped = torch.rand(count, generator=draws) < self.config.caption_dropout
        at = torch.from_numpy(np.ascontiguousarray(indices[mine]))
        data = objective.sample_gaussian(rows.mean[at], rows.logvar[at], jitter[mine])
        made = {"data": data, "noise": noise[mine], "times": times[mine]}
        for name, values in rows.conditions.items():
            without = dropped[mine].view(-1, *[1] * (values.ndim - 1))
            made[name] = torch.where(without, empty[name], values[rows.caption[at]])
        return {f"{side}{name}": value for name, value in made.items()}


@dataclass(frozen=True)
class _Rows:
    """Pictures in memory: moments of their latents ``[N, channels, h, w]``, and what stands for their captions."""

    mean: Tensor
    logvar: Tensor
    conditions: dict[str, Tensor]  # one row a distinct caption
    caption: Tensor  # [N], row of `conditions`

    def __len__(self) -> int:
        return len(self.mean)


class _Reader:
    """The parts of a model folder that pictures and prompts go through before they come to the denoiser."""

    def __init__(self, model: Path, device: torch.device) -> None:
        self._device = device
        self._tokenizer = load_tokenizer(model / "tokenizer")
        self._tower = load_text_tower(model / "text_encoder").to(device)
        self._autoencoder = load_autoencoder(model / "vae").to(device)

    def conditions(self, prompts: list[str]) -> dict[str, Tensor]:
        """What the denoiser is told of each prompt, by the name that :class:`Denoise` takes it under."""
        states, mask = read_prompts(self._tokenizer, self._tower, prompts)
        return {"states": states.cpu(), "mask": mask.cpu()}

    def rows(self, artifact: Path) -> _Rows:
        """The training rows of an artifact.

        Raises:
            ArtifactError: its pictures are of several sizes.
        """
        pictures = load_pictures(artifact)
        if len(pictures.blocks) != 1:
            raise ArtifactError(
                f"The pictures to train an adapter on are of {len(pictures.blocks)} sizes",
                expected="square pictures of one size",
                remedy="run `atelier finetune --images` again; it prepares them for the model",
            )
        captions = table(artifact, ["caption"])["caption"].to_pylist()
        distinct = sorted(set(captions))
        caption = torch.tensor([distinct.index(text) for text in captions])
        mean, logvar = self._moments(pictures.blocks[0])
        return _Rows(mean, logvar, self.conditions(distinct), caption)

    @torch.inference_mode()
    def _moments(self, pictures: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of latents, scaled as the denoiser sees them."""
        config = self._autoencoder.config
        scaling, shift = float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
        means, logvars = [], []
        for start in range(0, len(pictures), _ENCODED):
            pixels = to_pixels(pictures[start : start + _ENCODED]).to(self._device)
            mean, logvar = encode_moments(self._autoencoder, pixels)
            means.append((mean.float().cpu() - shift) * scaling)
            logvars.append(logvar.float().cpu() + 2 * math.log(scaling))
        return torch.cat(means).clone(), torch.cat(logvars).clone()


def pipeline_of(model: Path) -> str:
    """Name of the diffusers class that opens the folder."""
    return str(json.loads((model / "model_index.json").read_text())["_class_name"])


def objective_of(model: Path) -> Denoiser:
    """What a model was trained for, as its scheduler tells the loss: objective, shift and noise levels.

    Raises:
        TrainingError: it predicts something else.
    """
    found = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    kind = _OBJECTIVES.get(found.get("prediction_type", "epsilon"))
    if kind is None:
        raise TrainingError(
            f"The model in {model} predicts {found['prediction_type']}",
            expected=", ".join(_OBJECTIVES),
            remedy="personalize a model with one of these objectives",
        )
    return Denoiser.model_validate(
        {
            "objective": kind,
            "time_shift": found.get("flow_shift") or 1.0,
            "zero_terminal_snr": bool(found.get("rescale_betas_zero_snr", False)),
        }
    )


def _times(config: Denoiser, count: int, draws: torch.Generator) -> Tensor:
    """``[count]`` in 0..1: logit-normal and shifted for flow matching, else uniform."""
    if config.objective != "flow":
        return torch.rand(count, generator=draws)
    times = objective.logit_normal_times(count, config.time_mean, config.time_std, draws)
    return objective.shift_times(times, config.time_shift)


def _part(batch: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}
