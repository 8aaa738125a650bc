"""The moving average against a plain reference."""

from __future__ import annotations

import torch

from components.training.ema import Ema


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
    other.restore(*one.state())
    weights[0].mul_(2)
    one.update(weights)
    other.update(weights)
    assert torch.equal(one.averages[0], other.averages[0])


def test_average_does_not_share_memory_with_the_weights() -> None:
    weights = [torch.zeros(2)]
    ema = Ema(weights, 0.5)
    weights[0].fill_(1)
    assert ema.averages[0].tolist() == [0, 0]
