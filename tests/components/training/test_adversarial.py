"""What the families minimise, held against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from components.training import adversarial
from components.training.pairs import covered
from components.training.task_gan import augmented, shrunk
from components.training.task_vae import annealed, kl_between


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_discriminator_and_generator_losses() -> None:
    draws = np.random.default_rng(0)
    real, fake = [tuple(draws.normal(size=(2, 6))) for _ in range(2)]
    wrong, mismatched = draws.normal(size=6), np.array([1, 0, 1, 1, 1, 0], bool)

    def tensors(values: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        one, two = (torch.tensor(v) for v in values)
        return one, two

    def ours(kind: adversarial.Loss) -> float:
        return float(
            adversarial.discriminator_loss(
                kind, tensors(real), tensors(fake), torch.tensor(wrong), torch.tensor(mismatched)
            )
        )

    bce = sum(-np.log(sigmoid(x)).mean() for x in real) / 2
    bce += (sum(-np.log(1 - sigmoid(x)).mean() for x in fake) - np.log(1 - sigmoid(wrong[mismatched])).mean()) / 3
    assert ours("bce") == pytest.approx(bce)
    hinge = sum(np.maximum(0, 1 - x).mean() for x in real) / 2
    hinge += (sum(np.maximum(0, 1 + x).mean() for x in fake) + np.maximum(0, 1 + wrong[mismatched]).mean()) / 3
    assert ours("hinge") == pytest.approx(hinge)
    logits = torch.tensor(fake[0])
    assert float(adversarial.fooling_loss("bce", logits)) == pytest.approx(-np.log(sigmoid(fake[0])).mean())
    assert float(adversarial.fooling_loss("hinge", logits)) == pytest.approx(-fake[0].mean())


def test_captions_that_all_agree_are_no_mismatch() -> None:
    nothing = torch.zeros(4, dtype=torch.bool)
    assert float(adversarial.fake_loss("bce", torch.randn(4), nothing)) == 0


def test_r1_of_a_known_function() -> None:
    pictures = torch.randn(3, 2, 4, 4, requires_grad=True)
    weight = torch.randn(2, 4, 4)
    logits = (pictures.square() * weight).flatten(1).sum(1)
    expected = (2 * pictures * weight).square().flatten(1).sum(1).mean() / 2
    assert torch.allclose(adversarial.r1_penalty(logits, pictures), expected)


def test_kl_terms() -> None:
    mean, logvar, other, spread = (torch.randn(5, 7) for _ in range(4))
    one, two = Normal(mean, (logvar / 2).exp()), Normal(other, (spread / 2).exp())
    assert torch.allclose(kl_between(mean, logvar, other, spread), kl_divergence(one, two).sum(1), atol=1e-4)
    standard = kl_divergence(one, Normal(torch.zeros(5, 7), torch.ones(5, 7))).mean()
    assert torch.allclose(adversarial.augmentation_kl(mean, logvar), standard, atol=1e-5)
    assert [annealed(done, 0.5) for done in (0.0, 0.25, 0.5, 1.0)] == [0, 0.5, 1, 1] and annealed(0.0, 0.0) == 1


def test_pictures_are_cropped_mirrored_and_shrunk() -> None:
    pictures = torch.rand(2, 3, 8, 8) * 2 - 1
    place = torch.tensor([[0.0, 0.0, 0.9], [0.999, 0.999, 0.1]])
    assert torch.equal(augmented(pictures, place, 1.0, False), pictures)
    mirrored = augmented(pictures, place, 1.0, True)
    assert torch.equal(mirrored[0], pictures[0]) and torch.equal(mirrored[1], pictures[1].flip(2))
    larger = torch.nn.functional.interpolate(pictures, (10, 10), mode="bicubic", antialias=True).clamp(-1, 1)
    cropped = augmented(pictures, place, 1.25, False)
    assert torch.equal(cropped[0], larger[0, :, :8, :8]) and torch.equal(cropped[1], larger[1, :, 2:, 2:])
    assert torch.allclose(shrunk(pictures, 4)[0, 0, 0, 0], pictures[0, 0, :2, :2].mean())
    wide = torch.rand(1, 3, 8, 16)
    assert torch.equal(covered(wide, 8), wide[..., 4:12]) and covered(torch.rand(1, 3, 6, 9), 8).shape[-2:] == (8, 8)
