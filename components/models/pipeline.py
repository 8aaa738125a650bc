"""The finished model: a folder of a stock diffusers pipeline, and a generator that samples it in batches.

A U-Net is saved as ``StableDiffusionPipeline``, a diffusion transformer as ``PixArtAlphaPipeline``.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.contracts.errors import ArtifactError, TrainingError
from components.models.adapters import Adapters
from components.models.autoencoder import factor_of, load_autoencoder
from components.models.denoiser import FOLDERS, downsampling_of, load_denoiser, predict
from components.models.quiet import quieten
from components.models.samplers import NAMES, Samplers, Table, advance, make_scheduler, start
from components.models.stepping import Drawing, Picture, Pixels, Style, draw, noise_of, pictures_of, size_of
from components.models.text_encoder import load_text_tower, load_tokenizer, read_prompts, with_positions
from components.runtime.precision import autocast

_REMEMBERED = 32  # prompts, the states of whose tokens are kept
_PIXART_TOKENS = 120  # that PixArt's pipeline pads every prompt to, unless it is told otherwise


def save_pipeline(
    folder: Path, tower: Any, tokenizer: Any, autoencoder: Any, denoiser: Any, scaling: float, scheduler: Any = None
) -> None:
    """Write a folder that ``DiffusionPipeline.from_pretrained`` opens without any code of this project.

    Args:
        tower: of the text encoder, as :func:`components.models.text_encoder.load_text_tower` gives it.
        scaling: latents times this have unit variance (Rombach et al. 2022, sec. G).
        scheduler: as :func:`make_scheduler` gives it; that of flow matching by default.

    Raises:
        TrainingError: no stock pipeline has these parts together.
    """
    quieten()
    import diffusers

    autoencoder.register_to_config(scaling_factor=scaling)
    parts = {"vae": autoencoder, "tokenizer": tokenizer, "scheduler": scheduler or make_scheduler()}
    if FOLDERS[type(denoiser).__name__] == "transformer":
        tower = with_positions(tower, _PIXART_TOKENS)
        pipeline = diffusers.PixArtAlphaPipeline(text_encoder=tower, transformer=denoiser, **parts)
    else:
        require_together("unet", type(autoencoder).__name__)
        pipeline = diffusers.StableDiffusionPipeline(
            text_encoder=tower, unet=denoiser, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False, **parts,
        )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)


def require_together(family: str, autoencoder: str) -> None:
    """Stock pipelines of the denoiser's family must decode with this class of autoencoder.

    Raises:
        TrainingError: they do not.
    """
    if family == "unet" and autoencoder != "AutoencoderKL":
        raise TrainingError(
            f"A U-Net with an {autoencoder} has no stock pipeline",
            expected="AutoencoderKL, which StableDiffusionPipeline decodes with",
            remedy="set train.denoiser.family=dit, or choose an AutoencoderKL for train.autoencoder.source",
        )


class Generator:
    """Pictures from prompts, many at a time, each at a step of its own.

    Each picture starts from the noise of its own seed and is moved by numbers of its own row alone, so a prompt and a
    seed give the same picture in any batch, up to the rounding of sums, whose order libraries choose by the batch.
    """

    family, uses_steps, uses_seed, uses_styles = "diffusion", True, True, True  # see components.models.families
    samplers: tuple[str, ...] = NAMES

    def __init__(
        self, tokenizer: Any, tower: Any, denoiser: Any, autoencoder: Any, scheduler: Any, device: Any
    ) -> None:
        self._tokenizer, self._device = tokenizer, device
        self._tower, self._denoiser, self._autoencoder = tower, denoiser, autoencoder
        self._samplers, self._adapters = Samplers(scheduler), Adapters(denoiser)
        self._told: OrderedDict[str, tuple[Any, Any]] = OrderedDict()  # of prompts; the one used least recently first
        self._underway: weakref.WeakSet[Drawing] = weakref.WeakSet()

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> Generator:
        """From a folder of :func:`save_pipeline`. ``device``: "cpu", "cuda", ...; a GPU when there is one by default.

        Raises:
            ArtifactError: the folder is not such a model.
        """
        quieten()
        import torch
        from diffusers import DPMSolverMultistepScheduler

        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = Path(folder)
        within = next((name for name in FOLDERS.values() if (folder / name).is_dir()), "unet")
        try:
            tower = frozen(load_text_tower(folder / "text_encoder"), chosen)
            # convolutions are faster with weights in the layout of what they are given
            denoiser = frozen(load_denoiser(folder / within), chosen).to(memory_format=torch.channels_last)
            autoencoder = frozen(load_autoencoder(folder / "vae"), chosen).to(memory_format=torch.channels_last)
            scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
            tokenizer = load_tokenizer(folder / "tokenizer")
        except Exception as error:  # three libraries read these files, and a damaged one makes them raise anything
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ArtifactError(
                f"{folder} cannot be opened as a model: {said[0]}",
                expected="a diffusers folder with unet or transformer, vae, text_encoder, tokenizer and scheduler",
                remedy="check the path, or train and assemble the model again",
            ) from error
        return cls(tokenizer, tower, denoiser, autoencoder, scheduler, chosen)

    @property
    def image_size(self) -> int:
        """Side of the pictures, in pixels."""
        return int(self._denoiser.config.sample_size * factor_of(self._autoencoder))

    @property
    def granularity(self) -> int:
        """Sides of other sizes must be multiples of so many pixels."""
        return factor_of(self._autoencoder) * downsampling_of(self._denoiser)

    def truncated(self, prompt: str) -> bool:
        """True if the prompt is longer than the text encoder reads: its end is then ignored."""
        length = len(self._tokenizer(prompt, truncation=False)["input_ids"])
        return length > int(self._tokenizer.model_max_length)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance_scale: float,
        negative_prompts: Sequence[str] | None = None,
        sampler: str | None = None,
        size: tuple[int, int] | None = None,
        style: Style | None = None,
    ) -> Pixels:
        """One picture a prompt: uint8 RGB ``[N, H, W, 3]``, as a server draws it.

        Args:
            seeds: one a prompt, 0 .. 2**63-1.
            steps: of the sampler, at least 1.
            guidance_scale: 1 means without guidance (Ho & Salimans 2022, eq. 6 with w = scale - 1).
            negative_prompts: what to lead away from; the empty prompt by default.
            sampler: one of :data:`samplers`; the model's own by default.
            size: width and height in pixels, multiples of :attr:`granularity`; the model's own by default.

        Raises:
            InputError: lengths differ, a number is out of range, or there is no such sampler or size.
            ArtifactError: the style cannot be read, or does not fit.
        """
        alike = {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler, "style": style}
        pictures = pictures_of(prompts, seeds, negative_prompts, size, **alike)
        if not pictures:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        return draw(self, pictures)

    def begin(self, pictures: Sequence[Picture]) -> list[Drawing]:
        """Read the prompts, draw the noise and load the styles of pictures, of whatever sizes.

        Raises:
            InputError, ArtifactError: as :meth:`generate`; then none of them is begun.
        """
        import torch

        sizes = [size_of(picture, self.image_size, self.granularity) for picture in pictures]
        tables = [self._samplers.table(picture.sampler, picture.steps) for picture in pictures]
        names: set[str | None] = {drawing.inside.adapter for drawing in self._underway}
        drawings = []
        with torch.inference_mode():
            told = self._read([p.prompt for p in pictures] + [p.negative_prompt for p in pictures if p.guided])
            for picture, size, table in zip(pictures, sizes, tables, strict=True):
                adapter = None
                if style := picture.style:
                    names.add(adapter := self._adapters.load(style.key, style.folder, {n for n in names if n}))
                factor = factor_of(self._autoencoder)
                shape = (self._denoiser.config.in_channels, size[1] // factor, size[0] // factor)
                inside = _Latents(
                    table, start(noise_of(picture, shape).to(self._device)), told[picture.prompt],
                    told[picture.negative_prompt] if picture.guided else None, adapter,
                )  # fmt: skip
                drawings.append(Drawing(picture, table.steps, size, 2 if picture.guided else 1, inside))
        self._underway.update(drawings)
        return drawings

    def step(self, drawings: Sequence[Drawing]) -> None:
        """One step of every drawing, by one call of the denoiser; all of one size, and none done.

        An error leaves all of them as they were.
        """
        import torch

        insides: list[_Latents] = [drawing.inside for drawing in drawings]
        with torch.inference_mode():
            kept = torch.stack([inside.kept for inside in insides])
            rows = [(inside.table, drawing.step) for inside, drawing in zip(insides, drawings, strict=True)]
            times = torch.stack([table.times[step] for table, step in rows]).to(self._device)
            weights = torch.stack([table.weights[step] for table, step in rows]).to(self._device)
            following = advance(kept, self._predicted(drawings, kept[:, 0], times), weights)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # a step that is over can be timed, and the next one cancelled
        for drawing, inside, after in zip(drawings, insides, following, strict=True):
            inside.kept = after
            drawing.step += 1

    def preview(self, drawings: Sequence[Drawing]) -> Pixels:
        """What each drawing is expected to become, uint8 ``[N, H, W, 3]``: its last prediction of the picture (x0)."""
        return self._decode([drawing.inside.kept[1 if drawing.step else 0] for drawing in drawings])

    def finish(self, drawings: Sequence[Drawing]) -> Pixels:
        """The pictures of drawings that are done, all of one size: uint8 ``[N, H, W, 3]``."""
        return self._decode([drawing.inside.kept[0] for drawing in drawings])

    def _read(self, prompts: Sequence[str]) -> dict[str, tuple[Any, Any]]:
        """What the denoiser is told of prompts: states fp32 ``[length, width]`` and mask bool ``[length]``, False for
        padding. The last ones are remembered: many requests share their negative prompt, and pictures their prompt."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._told]
        if missing:
            states, mask = read_prompts(self._tokenizer, self._tower, missing)
            for i, prompt in enumerate(missing):
                self._told[prompt] = states[i].clone(), mask[i].clone()
        found = {prompt: self._told[prompt] for prompt in prompts}
        for prompt in found:
            self._told.move_to_end(prompt)
        while len(self._told) > _REMEMBERED:
            self._told.popitem(last=False)
        return found

    def _predicted(self, drawings: Sequence[Drawing], latents: Any, times: Any) -> Any:
        """The denoiser's prediction for every drawing, with guidance where it is asked for: fp32 ``[N, C, h, w]``."""
        import torch

        insides: list[_Latents] = [drawing.inside for drawing in drawings]
        guided = [i for i, inside in enumerate(insides) if inside.against is not None]
        rows = [*range(len(insides)), *guided]
        told = [inside.told for inside in insides] + [inside.against for inside in insides if inside.against]
        states, mask = torch.stack([each[0] for each in told]), torch.stack([each[1] for each in told])
        with self._adapters.on([insides[i].adapter for i in rows]), autocast(self._device.type):
            found = predict(self._denoiser, latents[rows], times[rows], states, mask).float()
        if not guided:
            return found
        scales = torch.tensor([drawings[i].picture.guidance_scale for i in guided], device=found.device)
        wanted, unwanted = found[: len(insides)].clone(), found[len(insides) :]
        wanted[guided] = unwanted + scales[:, None, None, None] * (wanted[guided] - unwanted)
        return wanted

    def _decode(self, latents: list[Any]) -> Pixels:
        import torch

        with torch.inference_mode():
            scaled = torch.stack(latents) / self._autoencoder.config.scaling_factor
            with autocast(self._device.type):
                pictures = self._autoencoder.decode(scaled, return_dict=False)[0]
            pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            return np.asarray(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())


@dataclass
class _Latents:
    """The inside of a drawing."""

    table: Table
    kept: Any  # see components.models.samplers.advance
    told: tuple[Any, Any]  # states and mask of the prompt
    against: tuple[Any, Any] | None  # of the negative prompt; None without guidance
    adapter: str | None  # name of its LoRA


def frozen(module: Any, device: Any) -> Any:
    """The module in fp32 on the device, ready to run, not to train."""
    return module.float().to(device).eval().requires_grad_(False)
