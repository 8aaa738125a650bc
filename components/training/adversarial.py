"""What generator and discriminators minimise: pure functions of logits and pictures, each with its source."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["hinge", "bce"]


def real_loss(kind: Loss, logits: Tensor) -> Tensor:
    """The discriminator's loss where it should say real: ``[N]`` to a scalar.

    "bce" is Goodfellow et al. 2014, eq. 1; "hinge" is Lim and Ye 2017, and Miyato et al. 2018, eq. 16.
    """
    return (F.softplus(-logits) if kind == "bce" else F.relu(1 - logits)).mean()


def fake_loss(kind: Loss, logits: Tensor, counts: Tensor | None = None) -> Tensor:
    """The discriminator's loss where it should say fake; ``counts`` (bool ``[N]``) leaves rows out."""
    each = F.softplus(logits) if kind == "bce" else F.relu(1 + logits)
    if counts is None:
        return each.mean()
    return (each * counts).sum() / counts.sum().clamp(min=1)


def fooling_loss(kind: Loss, logits: Tensor) -> Tensor:
    """The generator's loss: non-saturating with "bce" (Goodfellow et al. 2014, sec. 3), ``-D`` with "hinge"."""
    return (F.softplus(-logits) if kind == "bce" else -logits).mean()


def discriminator_loss(
    kind: Loss, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor], wrong: Tensor, mismatched: Tensor
) -> Tensor:
    """Loss of one discriminator (Zhang et al. 2018, StackGAN++, eqs. 3 and 6), weighed as in AttnGAN's code.

    Args:
        real, fake: logits ``[N]`` without and with the sentence. wrong: of real pictures with the sentences of
            others. mismatched: bool ``[N]``: the other sentence is indeed another one.
    """
    true = (real_loss(kind, real[0]) + real_loss(kind, real[1])) / 2
    false = fake_loss(kind, fake[0]) + fake_loss(kind, fake[1]) + fake_loss(kind, wrong, mismatched)
    return true + false / 3


def r1_penalty(logits: Tensor, pictures: Tensor) -> Tensor:
    """``|grad D|^2 / 2`` at real pictures, mean over the batch (Mescheder et al. 2018, eq. 9 without gamma).

    Args:
        logits: of the pictures, in one graph with them. pictures: with ``requires_grad``.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), pictures, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / 2


def augmentation_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of the augmented condition from N(0, 1), mean of its numbers (Zhang et al. 2017, eq. 2)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
