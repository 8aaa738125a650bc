"""The rival of the training step: ``python -m tests.benchmarks.train_rival MODEL DATASET BATCH STEPS PRECISION OUT``.

After ``examples/text_to_image/train_text_to_image.py`` of diffusers 0.42, with ``--use_ema --snr_gamma 5`` and the
script's defaults else: accelerate, a loader that transforms and tokenises each sample as it is asked for, latents and
text encoded online in the precision of the training, AdamW, clipping at 1, ``EMAModel``, the loss read at every step.
What differs: pictures come from memory and are turned into tensors by numpy, where the script decodes files and uses
torchvision; nothing is logged or saved. All of it is to the rival's gain.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset


class Pictures(Dataset[dict[str, Any]]):
    """Pixels -1..1 ``[3, H, W]`` and token ids of one sample."""

    def __init__(self, dataset: Path, tokenizer: Any) -> None:
        from components.training.samples import load_pictures, table

        self._pictures = load_pictures(dataset).blocks[0]
        self._captions = table(dataset, ["caption"])["caption"].to_pylist()
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = torch.from_numpy(np.ascontiguousarray(self._pictures[index].transpose(2, 0, 1))).float() / 255
        ids = self._tokenizer(
            self._captions[index], max_length=self._tokenizer.model_max_length, padding="max_length", truncation=True,
            return_tensors="pt",
        ).input_ids[0]  # fmt: skip
        return {"pixel_values": (pixels - 0.5) / 0.5, "input_ids": ids}


def train(model: Path, dataset: Path, batch_size: int, steps: int, precision: str) -> dict[str, float]:
    """Images a second and processor seconds from the second step on: making models and loader, and what the first step
    makes once, are left out, as they are on our side."""
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel, compute_snr
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

    accelerator = Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model / "tokenizer")
    reader = CLIPTextModel.from_pretrained(model / "text_encoder").requires_grad_(False)
    autoencoder = AutoencoderKL.from_pretrained(model / "vae").requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(model / "unet").train()
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    loader = DataLoader(Pictures(dataset, tokenizer), shuffle=True, batch_size=batch_size, num_workers=0)
    rates = get_scheduler("constant", optimizer=optimiser, num_warmup_steps=500, num_training_steps=steps)
    unet, optimiser, loader, rates = accelerator.prepare(unet, optimiser, loader, rates)
    average.to(accelerator.device)
    reader.to(accelerator.device, dtype=dtype)
    autoencoder.to(accelerator.device, dtype=dtype)

    began, spent, done = 0.0, 0.0, 0
    while done < steps:
        for batch in loader:
            latents = autoencoder.encode(batch["pixel_values"].to(dtype)).latent_dist.sample()
            latents = latents * autoencoder.config.scaling_factor
            noise = torch.randn_like(latents)
            times = torch.randint(0, 1000, (len(latents),), device=latents.device)
            noisy = scheduler.add_noise(latents, noise, times)
            states = reader(batch["input_ids"], return_dict=False)[0]
            predicted = unet(noisy, times, states, return_dict=False)[0]
            snr = compute_snr(scheduler, times)
            weights = torch.stack([snr, 5.0 * torch.ones_like(times)], dim=1).min(dim=1)[0] / snr
            errors = F.mse_loss(predicted.float(), noise.float(), reduction="none")
            loss = (errors.mean(dim=(1, 2, 3)) * weights).mean()
            accelerator.gather(loss.repeat(batch_size)).mean().item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimiser.step()
            rates.step()
            optimiser.zero_grad()
            average.step(unet.parameters())
            loss.detach().item()
            done += 1
            if done == 1:
                began, spent = time.perf_counter(), time.process_time()
            if done == steps:
                break
    seconds = time.perf_counter() - began
    return {"images_per_second": (steps - 1) * batch_size / seconds, "processor_seconds": time.process_time() - spent}


if __name__ == "__main__":
    model, dataset, batch, steps, precision, out = sys.argv[1:]
    Path(out).write_text(json.dumps(train(Path(model), Path(dataset), int(batch), int(steps), precision)))
