"""Objectives against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from components.models.samplers import alpha_bars, make_scheduler
from components.training import objective


def test_times_follow_the_logit_normal_distribution() -> None:
    times = objective.logit_normal_times(200_000, 0.5, 0.8, torch.Generator().manual_seed(0))
    logits = torch.log(times / (1 - times))
    assert times.min() > 0 and times.max() < 1
    assert logits.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(0.8, abs=0.01)


def test_shift_is_esser_equation_23_and_keeps_the_ends() -> None:
    times = torch.tensor([0.0, 0.25, 1.0])
    assert objective.shift_times(times, 3.0).tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert torch.equal(objective.shift_times(times, 1.0), times)


def test_path_and_velocity_agree() -> None:
    data, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    step = 1e-3
    before = objective.interpolate(data, noise, torch.tensor([0.3, 0.7]))
    after = objective.interpolate(data, noise, torch.tensor([0.3 + step, 0.7 + step]))
    assert torch.allclose((after - before) / step, objective.flow_target(data, noise), atol=2e-3)
    assert torch.equal(objective.interpolate(data, noise, torch.zeros(2)), data)
    assert torch.equal(objective.interpolate(data, noise, torch.ones(2)), noise)


def test_flow_loss_is_zero_for_the_true_velocity() -> None:
    data, noise = torch.randn(4, 2, 2, 2), torch.randn(4, 2, 2, 2)
    assert objective.flow_loss(noise - data, data, noise).item() == 0
    assert objective.flow_loss(noise - data + 2, data, noise).item() == pytest.approx(4, rel=1e-5)


def test_diffused_data_and_v_rebuild_data_and_noise() -> None:
    data, noise, a = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2), torch.tensor([0.9, 0.5, 0.0])
    noisy, v = objective.diffuse(data, noise, a), objective.v_target(data, noise, a)
    root, rest = a.sqrt().view(-1, 1, 1, 1), (1 - a).sqrt().view(-1, 1, 1, 1)
    assert torch.allclose(root * noisy - rest * v, data, atol=1e-6)
    assert torch.allclose(rest * noisy + root * v, noise, atol=1e-6)


def test_min_snr_weighs_the_error_of_the_data() -> None:
    a = torch.tensor([0.99, 0.6, 0.1])
    snr = a / (1 - a)
    # an error e of x_0 is an error of e * sqrt(snr) in epsilon and of e * sqrt(snr + 1) in v
    assert torch.allclose(objective.min_snr_weight(a, 5.0, "epsilon") * snr, snr.clamp(max=5.0))
    assert torch.allclose(objective.min_snr_weight(a, 5.0, "v") * (snr + 1), snr.clamp(max=5.0))
    assert torch.equal(objective.min_snr_weight(a, 0.0, "v"), torch.ones(3))
    assert objective.min_snr_weight(torch.zeros(1), 5.0, "epsilon").item() == 1.0  # at zero terminal SNR


@pytest.mark.parametrize(("kind", "zero"), [("flow", False), ("epsilon", False), ("v", False), ("v", True)])
def test_the_best_prediction_samples_the_data(kind: str, zero: bool) -> None:
    """For data of N(m, s^2) the best prediction is known; trained levels and the sampler's must be the same."""
    mean, std, count = 0.7, 0.4, 4000
    levels = alpha_bars(zero)
    scheduler = make_scheduler(kind, shift=2.0 if kind == "flow" else 1.0, zero_terminal_snr=zero)
    scheduler.set_timesteps(60)
    z = torch.randn(count, 1, generator=torch.Generator().manual_seed(0))
    for step in scheduler.timesteps:
        t = step.double() / 1000
        a, b = (1 - t, t) if kind == "flow" else (levels[step].double().sqrt(), (1 - levels[step].double()).sqrt())
        z = z.double()
        data = mean + std**2 * a * (z - a * mean) / (a**2 * std**2 + b**2)  # E[x_0 | z]
        noise = (z - a * data) / b.clamp(min=1e-8)
        predicted = {"flow": noise - data, "epsilon": noise, "v": a * noise - b * data}[kind]
        z = scheduler.step(predicted, step, z, return_dict=False)[0]
    # without zero terminal SNR the last level holds a little signal, which pure noise lacks (Lin et al. 2024)
    assert z.mean().item() == pytest.approx(mean, abs=0.02 if kind == "flow" or zero else 0.1)
    assert z.std().item() == pytest.approx(std, abs=0.03)


def test_contrastive_loss_of_orthogonal_pairs() -> None:
    rows, scale = torch.eye(4), torch.tensor(2.0)
    expected = -2 + math.log(math.exp(2) + 3)
    assert objective.contrastive_loss(rows, rows, rows, rows, scale, 0).item() == pytest.approx(expected, rel=1e-6)


def test_contrastive_loss_of_shares_has_the_mean_of_the_whole() -> None:
    images, texts = (torch.nn.functional.normalize(torch.randn(8, 5), dim=-1) for _ in range(2))
    scale = torch.tensor(5.0)
    whole = objective.contrastive_loss(images, texts, images, texts, scale, 0)
    shares = [objective.contrastive_loss(images[i : i + 4], texts[i : i + 4], images, texts, scale, i) for i in (0, 4)]
    assert torch.stack(shares).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_kl_matches_torch_distributions() -> None:
    mean, logvar = torch.randn(3, 4), torch.randn(3, 4)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0)).mean()
    assert objective.kl_to_normal(mean, logvar).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective.kl_to_normal(torch.zeros(2), torch.zeros(2)).item() == 0


def test_autoencoder_loss_is_squared_error_plus_weighted_kl() -> None:
    pictures, mean, logvar = torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    loss, error = objective.autoencoder_loss(pictures + 0.5, pictures, mean, logvar, 0.1)
    assert error.item() == pytest.approx(0.25)
    assert loss.item() == pytest.approx(0.25 + 0.1 * 0.5)


def test_schedule_rises_stays_and_falls() -> None:
    factors = [objective.schedule(s, 100, 0.1, 0.4) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0
    assert all(f == 1.0 for f in factors[10:60])
    assert factors[60:] == sorted(factors[60:], reverse=True) and 0 < factors[-1] < 0.05


def test_psnr_of_known_errors() -> None:
    assert objective.psnr(torch.tensor(4.0)).item() == pytest.approx(0.0)
    assert objective.psnr(torch.tensor(0.004)).item() == pytest.approx(30.0)


def test_the_best_thumbnail_of_a_caption_is_the_mean_of_its_pictures() -> None:
    pixels = torch.rand(6, 3, 8, 8) * 2 - 1
    small = pixels.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))
    assert objective.thumbnail_loss(small, pixels).item() == pytest.approx(0, abs=1e-12)
    best = small.mean(0, keepdim=True).expand_as(small)
    least = objective.thumbnail_loss(best, pixels)
    assert least.item() == pytest.approx(small.var(0, correction=0).mean().item(), rel=1e-5)
    assert objective.thumbnail_loss(best + 0.1, pixels) > least
