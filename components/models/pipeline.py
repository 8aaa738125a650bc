"""The finished model: a folder of a stock diffusers pipeline, and a generator that samples it in batches.

A U-Net is saved as ``StableDiffusionPipeline``, a diffusion transformer as ``PixArtAlphaPipeline``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.contracts.errors import ArtifactError, InputError, TrainingError
from components.models.adapters import Adapters
from components.models.autoencoder import factor_of, load_autoencoder
from components.models.denoiser import FOLDERS, load_denoiser, predict
from components.models.quiet import quieten
from components.models.text_encoder import load_text_tower, load_tokenizer, read_prompts, with_positions
from components.runtime.precision import autocast

NOISE_LEVELS = 1000  # diffusers counts noise levels from 0 to this


def make_scheduler(prediction: str = "flow", shift: float = 1.0, zero_terminal_snr: bool = False) -> Any:
    """DPM-Solver++ (Lu et al. 2022) of second order, on the noise levels of the training.

    Args:
        prediction: "flow", "epsilon" or "v". shift: of the flow's times, as in training.
        zero_terminal_snr: "v": the last level is pure noise (Lin et al. 2024, "Common Diffusion Noise Schedules
            and Sample Steps Are Flawed").
    """
    from diffusers import DPMSolverMultistepScheduler

    if prediction == "flow":
        # steps_offset is not read with flow noise levels, but the stock pipeline warns of any other value
        return DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, steps_offset=1
        )
    return DPMSolverMultistepScheduler(
        **_STABLE_DIFFUSION,
        prediction_type="epsilon" if prediction == "epsilon" else "v_prediction",
        rescale_betas_zero_snr=zero_terminal_snr and prediction == "v",
        timestep_spacing="trailing",  # the first step of sampling is the last noise level (same paper, sec. 3.3)
        steps_offset=1,
    )


_STABLE_DIFFUSION: dict[str, Any] = {  # Rombach et al. 2022, table 15
    "num_train_timesteps": NOISE_LEVELS, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
}  # fmt: skip


def alpha_bars(zero_terminal_snr: bool) -> Any:
    """Cumulative products of ``1 - beta``, fp32 ``[NOISE_LEVELS]``: those that :func:`make_scheduler` samples on."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(**_STABLE_DIFFUSION, rescale_betas_zero_snr=zero_terminal_snr).alphas_cumprod


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
    """Pictures from prompts, many at a time.

    Each picture starts from the noise of its own seed, so a prompt and a seed give the same picture in any
    batch, up to the rounding of bf16.
    """

    family, uses_steps, uses_seed = "diffusion", True, True  # see components.models.families

    def __init__(
        self, tokenizer: Any, tower: Any, denoiser: Any, autoencoder: Any, scheduler: Any, device: Any
    ) -> None:
        self._tokenizer, self._scheduler, self._device = tokenizer, scheduler, device
        self._tower, self._denoiser, self._autoencoder = tower, denoiser, autoencoder
        self._adapters = Adapters(denoiser)

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
            denoiser = frozen(load_denoiser(folder / within), chosen)
            autoencoder = frozen(load_autoencoder(folder / "vae"), chosen)
            scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
            tokenizer = load_tokenizer(folder / "tokenizer")
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"{folder} cannot be opened as a model: {str(error).splitlines()[0]}",
                expected="a diffusers folder with unet or transformer, vae, text_encoder, tokenizer and scheduler",
                remedy="check the path, or train and assemble the model again",
            ) from error
        return cls(tokenizer, tower, denoiser, autoencoder, scheduler, chosen)

    @property
    def image_size(self) -> int:
        """Side of the pictures, in pixels."""
        return int(self._denoiser.config.sample_size * factor_of(self._autoencoder))

    def styled(self, key: str, folder: Path) -> AbstractContextManager[None]:
        """What is generated inside the block is drawn with the LoRA in ``folder``, and outside without any.

        See :meth:`components.models.adapters.Adapters.on`.
        """
        return self._adapters.on(key, folder)

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
    ) -> npt.NDArray[np.uint8]:
        """One picture a prompt: uint8 RGB ``[N, side, side, 3]``.

        Args:
            seeds: one a prompt, 0 .. 2**63-1.
            steps: of the sampler, at least 1.
            guidance_scale: 1 means without guidance (Ho & Salimans 2022, eq. 6 with w = scale - 1).
            negative_prompts: what to lead away from; the empty prompt by default.

        Raises:
            InputError: lengths differ, or a number is out of range.
        """
        import torch

        negatives = [""] * len(prompts) if negative_prompts is None else list(negative_prompts)
        if not len(prompts) == len(seeds) == len(negatives):
            raise InputError(
                f"{len(prompts)} prompts, {len(seeds)} seeds and {len(negatives)} negative prompts",
                remedy="pass one seed and one negative prompt for each prompt",
            )
        if steps < 1 or guidance_scale < 1:
            raise InputError(
                f"steps={steps}, guidance_scale={guidance_scale}", expected="both at least 1", remedy="raise them"
            )
        if not prompts:
            return np.zeros((0, self.image_size, self.image_size, 3), np.uint8)
        with torch.inference_mode():
            told = self.condition([*prompts, *negatives] if guidance_scale > 1 else list(prompts))
            latents = self._sample(self._noise(seeds), told, steps, guidance_scale)
            pixels = self._decode(latents)
        return np.asarray(pixels)

    def condition(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the denoiser is told of the prompts: ``states`` fp32 ``[N, length, width]``, ``mask`` bool
        ``[N, length]``, which is False for padding."""
        states, mask = read_prompts(self._tokenizer, self._tower, prompts)
        return {"states": states, "mask": mask}

    def _noise(self, seeds: Sequence[int]) -> Any:
        import torch

        side, channels = self._denoiser.config.sample_size, self._denoiser.config.in_channels
        draws = [
            torch.randn(1, channels, side, side, generator=torch.Generator("cpu").manual_seed(int(seed)))
            for seed in seeds
        ]
        return torch.cat(draws).to(self._device)

    def _sample(self, latents: Any, told: dict[str, Any], steps: int, guidance: float) -> Any:
        import torch

        # the scheduler counts its steps: a copy of its own for each call keeps calls apart
        scheduler = type(self._scheduler).from_config(self._scheduler.config)
        scheduler.set_timesteps(steps, device=self._device)
        for time in scheduler.timesteps:
            both = torch.cat([latents, latents]) if guidance > 1 else latents
            with autocast(self._device.type):
                velocity = predict(self._denoiser, both, time, **told)
            velocity = velocity.float()
            if guidance > 1:
                wanted, unwanted = velocity.chunk(2)
                velocity = unwanted + guidance * (wanted - unwanted)
            latents = scheduler.step(velocity, time, latents, return_dict=False)[0]
        return latents

    def _decode(self, latents: Any) -> Any:
        import torch

        with autocast(self._device.type):
            pictures = self._autoencoder.decode(latents / self._autoencoder.config.scaling_factor, return_dict=False)[0]
        pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def frozen(module: Any, device: Any) -> Any:
    """The module in fp32 on the device, ready to run, not to train."""
    return module.float().to(device).eval().requires_grad_(False)
