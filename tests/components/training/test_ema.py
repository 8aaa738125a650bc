"""The moving average against a plain reference."""

from __future__ import annotations

import pytest
import torch

from components.training.ema import Ema, power_of


def test_average_follows_the_reference() -> None:
    draws = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 2, generator=draws), torch.randn(4, generator=draws)]
    ema = Ema(weights, 0.9)
    expected = [w.double().clone() for w in weights]
    for n in range(40):
        for w in weights:
            w.add_(torch.randn(w.shape, generator=draws))
        ema.update(weights)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = [decay * e + (1 - decay) * w.double() for e, w in zip(expected, weights, strict=True)]
    for mine, theirs in zip(ema.averages, expected, strict=True):
        assert torch.allclose(mine.double(), theirs, atol=1e-5)


def test_restored_average_goes_on_alike() -> None:
    weights = [torch.ones(5)]
    one, other = Ema(weights, 0.99), Ema([torch.zeros(5)], 0.99)
    for _ in range(3):
        weights[0].mul_(2)
        one.update(weights)
    other.restore(one.updates, one.averages)
    weights[0].mul_(2)
    one.update(weights)
    other.update(weights)
    assert torch.equal(one.averages[0], other.averages[0])


def test_average_does_not_share_memory_with_the_weights() -> None:
    weights = [torch.zeros(2)]
    ema = Ema(weights, 0.5)
    weights[0].fill_(1)
    assert ema.averages[0].tolist() == [0, 0]


@pytest.mark.parametrize(("length", "power"), [(0.05, 16.97), (0.10, 6.94)])
def test_lengths_are_those_of_the_paper(length: float, power: float) -> None:
    """Karras et al. 2024, sec. 3.1, names both pairs."""
    assert power_of(length) == pytest.approx(power, abs=0.005)


def test_the_power_function_profile_has_the_length_asked_for() -> None:
    """Each step's share in the average, as the average of unit vectors shows it, has that relative spread."""
    steps, length = 400, 0.1
    ema = Ema([torch.zeros(steps)], 0.0, length)
    for step in range(steps):
        ema.update([torch.eye(steps)[step]])
    shares = ema.averages[0].double()
    times = (torch.arange(steps) + 1) / steps
    assert shares.sum() == pytest.approx(1.0, abs=1e-5)
    mean = (shares * times).sum()
    assert float(((shares * (times - mean) ** 2).sum()).sqrt()) == pytest.approx(length, rel=0.02)
