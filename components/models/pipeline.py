"""The finished model: a stock Stable Diffusion folder, and a generator that samples it in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from components.contracts.errors import ArtifactError, InputError
from components.models.quiet import quieten
from components.models.text_encoder import load_tokenizer, text_states, text_tower

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


def save_pipeline(
    folder: Path, clip: Any, tokenizer: Any, autoencoder: Any, denoiser: Any, scaling: float, scheduler: Any = None
) -> None:
    """Write a folder that ``DiffusionPipeline.from_pretrained`` opens without any code of this project.

    Args:
        scaling: latents times this have unit variance (Rombach et al. 2022, sec. G).
        scheduler: as :func:`make_scheduler` gives it; that of flow matching by default.
    """
    quieten()
    from diffusers import StableDiffusionPipeline

    autoencoder.register_to_config(scaling_factor=scaling)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_tower(clip),
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler or make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)


class Generator:
    """Pictures from prompts, many at a time.

    Each picture starts from the noise of its own seed, so a prompt and a seed give the same picture in any
    batch, up to the rounding of bf16.
    """

    def __init__(
        self, tokenizer: Any, tower: Any, denoiser: Any, autoencoder: Any, scheduler: Any, device: Any
    ) -> None:
        self._tokenizer, self._scheduler, self._device = tokenizer, scheduler, device
        self._tower, self._denoiser, self._autoencoder = tower, denoiser, autoencoder

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> Generator:
        """From a folder of :func:`save_pipeline`. ``device``: "cpu", "cuda", ...; a GPU when there is one by default.

        Raises:
            ArtifactError: the folder is not such a model.
        """
        quieten()
        import torch
        from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel

        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = Path(folder)
        local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        try:
            tower = frozen(CLIPTextModel.from_pretrained(folder / "text_encoder", **local), chosen)
            denoiser = frozen(UNet2DConditionModel.from_pretrained(folder / "unet", **local), chosen)
            autoencoder = frozen(AutoencoderKL.from_pretrained(folder / "vae", **local), chosen)
            scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
            tokenizer = load_tokenizer(folder / "tokenizer")
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"{folder} cannot be opened as a model: {str(error).splitlines()[0]}",
                expected="a Stable Diffusion folder with unet, vae, text_encoder, tokenizer and scheduler",
                remedy="check the path, or train and assemble the model again",
            ) from error
        return cls(tokenizer, tower, denoiser, autoencoder, scheduler, chosen)

    @property
    def image_size(self) -> int:
        """Side of the pictures, in pixels."""
        return int(self._denoiser.config.sample_size * 2 ** (len(self._autoencoder.config.block_out_channels) - 1))

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
            states = self._states([*prompts, *negatives] if guidance_scale > 1 else list(prompts))
            latents = self._sample(self._noise(seeds), states, steps, guidance_scale)
            pixels = self._decode(latents)
        return np.asarray(pixels)

    def _states(self, texts: list[str]) -> Any:
        distinct = list(dict.fromkeys(texts))
        ids = self._tokenizer(
            distinct, padding="max_length", truncation=True, max_length=self._tokenizer.model_max_length,
            return_tensors="pt",
        )["input_ids"]  # fmt: skip
        states = text_states(self._tower, ids.to(self._device))
        place = {text: i for i, text in enumerate(distinct)}
        return states[[place[text] for text in texts]]

    def _noise(self, seeds: Sequence[int]) -> Any:
        import torch

        side, channels = self._denoiser.config.sample_size, self._denoiser.config.in_channels
        draws = [
            torch.randn(1, channels, side, side, generator=torch.Generator("cpu").manual_seed(int(seed)))
            for seed in seeds
        ]
        return torch.cat(draws).to(self._device)

    def _sample(self, latents: Any, states: Any, steps: int, guidance: float) -> Any:
        import torch

        # the scheduler counts its steps: a copy of its own for each call keeps calls apart
        scheduler = type(self._scheduler).from_config(self._scheduler.config)
        scheduler.set_timesteps(steps, device=self._device)
        for time in scheduler.timesteps:
            both = torch.cat([latents, latents]) if guidance > 1 else latents
            with torch.autocast(self._device.type, torch.bfloat16):
                velocity = self._denoiser(both, time, encoder_hidden_states=states, return_dict=False)[0]
            velocity = velocity.float()
            if guidance > 1:
                wanted, unwanted = velocity.chunk(2)
                velocity = unwanted + guidance * (wanted - unwanted)
            latents = scheduler.step(velocity, time, latents, return_dict=False)[0]
        return latents

    def _decode(self, latents: Any) -> Any:
        import torch

        with torch.autocast(self._device.type, torch.bfloat16):
            pictures = self._autoencoder.decode(latents / self._autoencoder.config.scaling_factor, return_dict=False)[0]
        pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def frozen(module: Any, device: Any) -> Any:
    """The module in fp32 on the device, ready to run, not to train."""
    return module.float().to(device).eval().requires_grad_(False)
