"""What is minimised: pure functions of tensors, each with its source.

Times ``t`` run from 0 (data) to 1 (noise), as the noise level of diffusers' flow schedulers does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logit_normal_times(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Times in (0, 1), ``[count]``: the sigmoid of a normal draw.

    Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", eq. 19.
    """
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Times moved towards noise for ``shift`` > 1: ``s t / (1 + (s - 1) t)``; Esser et al. 2024, eq. 23."""
    return shift * times / (1 + (shift - 1) * times)


def interpolate(data: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The straight path ``z_t = (1 - t) x_0 + t eps`` (Esser et al. 2024, eq. 13). ``times`` is ``[N]``."""
    t = times.view(-1, *[1] * (data.ndim - 1))
    return (1 - t) * data + t * noise


def flow_target(data: Tensor, noise: Tensor) -> Tensor:
    """The velocity of that path, ``dz_t/dt = eps - x_0``: what the denoiser predicts."""
    return noise - data


def flow_loss(predicted: Tensor, data: Tensor, noise: Tensor) -> Tensor:
    """Conditional flow matching: mean squared error of the velocity (Lipman et al. 2023, eq. 9). Scalar."""
    return F.mse_loss(predicted.float(), flow_target(data, noise).float())


def thumbnail_loss(drawn: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error between small drawings ``[N, 3, s, s]`` and pictures ``[N, 3, H, W]`` shrunk to them. Scalar.

    Its optimum is the mean picture of a caption, ``E[x_0 | c]``: what :func:`flow_loss` asks of the denoiser at
    ``t = 1``, where nothing of the picture is left and the velocity is ``eps - E[x_0 | c]``.
    """
    height, width = drawn.shape[-2:]
    return F.mse_loss(drawn.float(), F.adaptive_avg_pool2d(pixels.float(), (height, width)))


def diffuse(data: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """``z_t = sqrt(a) x_0 + sqrt(1 - a) eps`` (Ho et al. 2020, eq. 4). ``alpha_bar`` is ``[N]``, 1 data, 0 noise."""
    a = alpha_bar.view(-1, *[1] * (data.ndim - 1))
    return a.sqrt() * data + (1 - a).sqrt() * noise


def v_target(data: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """``v = sqrt(a) eps - sqrt(1 - a) x_0`` (Salimans & Ho 2022, sec. 4)."""
    a = alpha_bar.view(-1, *[1] * (data.ndim - 1))
    return a.sqrt() * noise - (1 - a).sqrt() * data


def min_snr_weight(alpha_bar: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weight ``[N]`` of the squared error that amounts to ``min(snr, gamma)`` on the error of ``x_0``.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", sec. 3.4: divided by ``snr``
    for "epsilon" and by ``snr + 1`` for "v". ``gamma`` 0 gives ones.
    """
    if gamma == 0:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    if prediction == "v":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1.0)  # without snr / snr, which is not a number where snr is 0


def diffusion_loss(
    predicted: Tensor, data: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: str, gamma: float
) -> Tensor:
    """Weighted mean squared error of the predicted noise ("epsilon") or velocity ("v"). Scalar."""
    target = noise if prediction == "epsilon" else v_target(data, noise, alpha_bar)
    error = (predicted.float() - target.float()).square().flatten(1).mean(1)
    return (error * min_snr_weight(alpha_bar, gamma, prediction)).mean()


def contrastive_loss(
    images: Tensor, texts: Tensor, all_images: Tensor, all_texts: Tensor, scale: Tensor, first: int
) -> Tensor:
    """Symmetric cross-entropy of CLIP (Radford et al. 2021, figure 3) for this rank's rows of the global batch.

    Args:
        images, texts: unit features of this rank, ``[n, d]``.
        all_images, all_texts: unit features of the global batch, ``[N, d]``; equal to the former on one rank.
        scale: factor of the cosines (the inverse temperature).
        first: row of the global batch at which this rank's rows start.

    Returns:
        Scalar; its mean over ranks is the loss of the global batch.
    """
    truth = torch.arange(first, first + len(images), device=images.device)
    by_image = F.cross_entropy(scale * images.float() @ all_texts.float().T, truth)
    by_text = F.cross_entropy(scale * texts.float() @ all_images.float().T, truth)
    return (by_image + by_text) / 2


def sample_gaussian(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Reparametrised draw ``mean + exp(logvar / 2) eps`` (Kingma & Welling 2014, sec. 2.4)."""
    return mean + torch.exp(0.5 * logvar) * noise


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), nats an element (Kingma & Welling 2014, app. B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def autoencoder_loss(
    rebuilt: Tensor, pictures: Tensor, mean: Tensor, logvar: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Mean squared error plus ``kl_weight`` times the KL per latent element (Kingma & Welling 2014, eq. 10).

    The squared error, not the absolute one of Rombach et al. 2022: flat pictures reach 30 dB with it after a
    fifth of the images.

    Returns:
        The loss and the squared error alone, both scalars. Pictures are in -1..1.
    """
    error = F.mse_loss(rebuilt.float(), pictures.float())
    return error + kl_weight * kl_to_normal(mean, logvar), error


def schedule(step: int, steps: int, warmup: float, cooldown: float, floor: float = 0.01) -> float:
    """Factor of the learning rate at ``step`` (0-based): linear warm-up, plateau, linear cool-down to ``floor``.

    Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", sec. 3.
    ``warmup`` and ``cooldown`` are shares of ``steps``.
    """
    up = (step + 1) / max(1.0, warmup * steps)
    down = floor + (1 - floor) * (steps - step) / max(1.0, cooldown * steps)
    return min(1.0, up, down)


def psnr(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error on a range of 2 (-1..1)."""
    return 10 * torch.log10(4 / error.clamp(min=1e-12))
