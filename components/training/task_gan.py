"""Training DM-GAN: two turns a step, discriminators and generators. A task of :mod:`components.training.loop`.

Objective: Zhu et al. 2019, sec. 3.4: ``L = sum_i L_Gi + lambda_1 L_CA + lambda_2 L_DAMSM``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.contracts.errors import ArtifactError
from components.contracts.recipe import Gan
from components.models.damsm import Towers, load_towers
from components.models.discriminators import Discriminator, discriminators_for
from components.models.dm_gan import GanNetwork
from components.models.one_pass import Design, Saved
from components.models.reading import Reading
from components.training import adversarial
from components.training.damsm import Features, Gammas, damsm_loss
from components.training.engine import Optimiser
from components.training.pairs import PairsTask
from components.training.turns import frozen

GAMMAS = Gammas(attention=4.0, words=5.0, matching=10.0)  # of the DM-GAN authors' settings, for birds and for COCO
_DISCRIMINATORS = "discriminators"  # file beside the network, which a retrain goes on from


class Criticise(nn.Module):
    """The discriminators' turn. They see what the generators make of the batch's own noise."""

    def __init__(self, discriminators: nn.ModuleList, network: GanNetwork, config: Gan) -> None:
        super().__init__()
        self.discriminators, self.config = discriminators, config
        self._others = (network,)

    def forward(
        self, pixels: Tensor, ids: Tensor, words: Tensor, mask: Tensor, sentence: Tensor, noise: Tensor,
        penalised: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        with torch.no_grad():
            drawn = self._others[0].draw(Reading(words, mask, sentence), noise).pictures
        others = sentence.roll(1, 0)
        mismatched = (others != sentence).any(1)
        total, found = sentence.new_zeros(()), {}
        for judge, fakes in zip(judges_of(self.discriminators), drawn, strict=True):
            reals = shrunk(pixels, fakes.shape[-1])
            # one pass over both: spectral norm steps once, and the cores have more to do at a time
            real, fake = judge(torch.cat([reals, fakes])).chunk(2)
            wrong = judge.together(real, others)
            loss = adversarial.discriminator_loss(
                self.config.loss, (judge.alone(real), judge.together(real, sentence)),
                (judge.alone(fake), judge.together(fake, sentence)), wrong, mismatched,
            )  # fmt: skip
            total = total + loss
        if self.config.r1_weight and bool(penalised[0]):
            found["r1"] = self._penalty(pixels, sentence)
            total = total + self.config.r1_weight * self.config.r1_every * found["r1"]
        return {"loss": total, **{key: value.detach() for key, value in found.items()}}

    def _penalty(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        """R1 of all discriminators, in fp32: squared gradients of bf16 activations are mostly rounding."""
        total = sentence.new_zeros(())
        with torch.autocast(pixels.device.type, enabled=False):
            for judge, side in zip(
                judges_of(self.discriminators), sides_of(pixels.shape[-1], self.config.stages), strict=True
            ):
                reals = shrunk(pixels, side).detach().requires_grad_(True)
                alone, joint = judge.answers(reals, sentence)
                total = total + adversarial.r1_penalty(alone + joint, reals)
        return total


class Draw(nn.Module):
    """The generators' turn."""

    def __init__(self, network: GanNetwork, discriminators: nn.ModuleList, config: Gan) -> None:
        super().__init__()
        self.network, self.config = network, config
        self._others = (discriminators,)
        self._towers: tuple[Towers, ...] = ()

    def watch(self, towers: Towers) -> None:
        """The frozen towers of the DAMSM loss."""
        self._towers = (towers,)

    def forward(
        self, pixels: Tensor, ids: Tensor, words: Tensor, mask: Tensor, sentence: Tensor, noise: Tensor,
        penalised: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        drawing = self.network.draw(Reading(words, mask, sentence), noise)
        total, found = sentence.new_zeros(()), {}
        with frozen(self._others[0]):
            for judge, fakes in zip(judges_of(self._others[0]), drawing.pictures, strict=True):
                alone, joint = judge.answers(fakes, sentence)
                total = total + adversarial.fooling_loss(self.config.loss, alone)
                total = total + adversarial.fooling_loss(self.config.loss, joint)
        found["adversarial"] = total
        found["kl"] = adversarial.augmentation_kl(drawing.mean, drawing.logvar)
        total = total + self.config.kl_weight * found["kl"]
        if self._towers and self.config.damsm_weight:
            by_word, by_sentence = self._matched(drawing.pictures[-1], words, ids)
            found |= {"damsm_words": by_word, "damsm_sentence": by_sentence}
            total = total + self.config.damsm_weight * (by_word + by_sentence)
        return {"loss": total, **{key: value.detach() for key, value in found.items()}}

    def _matched(self, pictures: Tensor, words: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """DAMSM losses of the largest pictures within this rank's batch; equal captions are no mismatch."""
        towers = self._towers[0]
        with torch.no_grad():
            read = towers.read_states(words, ids)
        same = (ids[:, None] == ids[None]).all(2)
        return damsm_loss(Features(*towers.look(pictures), *read), gammas=GAMMAS, same=same)


class Adversaries(nn.Module):
    """Generators and discriminators with their turns."""

    averaged = ("generator",)

    def __init__(self, design: Design, network: GanNetwork, discriminators: nn.ModuleList, config: Gan) -> None:
        super().__init__()
        self.design = design
        self.discriminator = Criticise(discriminators, network, config)
        self.generator = Draw(network, discriminators, config)

    @property
    def network(self) -> GanNetwork:
        """The generators."""
        return self.generator.network

    def turns(self) -> dict[str, nn.Module]:
        """The turns of a step, in order."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def finished(self) -> Saved:
        """The generators, with the discriminators beside them."""
        return Saved(self.design, self.network, {_DISCRIMINATORS: self.discriminator.discriminators})

    def watch(self, clip: Path, device: torch.device) -> None:
        """Load CLIP with its DAMSM head where the loss has a weight."""
        if self.generator.config.damsm_weight:
            self.generator.watch(load_towers(clip).to(device))


@dataclass
class GanTask(PairsTask):
    """DM-GAN on pictures and readings."""

    whole_batch: bool = True  # mismatched sentences come from the batch
    step: int = 0

    def build(self) -> nn.Module:
        """See :class:`components.training.loop.Task`."""
        design, network = self.network()
        assert isinstance(network, GanNetwork)
        judges = discriminators_for(self.config, self.side, design.sentence)
        if self.start:
            _load(judges, self.start / f"{_DISCRIMINATORS}.safetensors")
        return Adversaries(design, network, judges, self.config)

    def held_out(self) -> None:
        """None: a generator's loss is against its own discriminators, and says nothing on held-out pictures."""

    def optimisers(self) -> dict[str, Optimiser]:
        """Adam for both, as every paper of this line has it; no clipping."""
        config: Gan = self.config
        rates = {"discriminator": config.discriminator_rate, "generator": config.learning_rate}
        return {
            turn: Optimiser(rate, 0.0, config.weight_decay, 0.0, betas=config.betas) for turn, rate in rates.items()
        }

    def at(self, step: int, steps: int) -> None:
        """The loop tells which step the next batch is of."""
        self.step = step

    def chance(self, count: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Noise, whether R1 falls due, and where each picture is cropped and mirrored."""
        config: Gan = self.config
        noise = torch.randn(count, config.noise + config.condition, generator=draws)
        due = torch.full((count,), self.step % config.r1_every == 0)
        if config.crop == 1 and not config.flip:
            return {"noise": noise, "penalised": due}
        return {"noise": noise, "penalised": due, "place": torch.rand(count, 3, generator=draws)}

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        """See :class:`PairsTask`; pictures are enlarged, cropped and mirrored as the recipe says."""
        found = super().batch(indices, mine, draws)
        if (place := found.pop("place", None)) is not None:
            found["pixels"] = augmented(found["pixels"], place, self.config.crop, self.config.flip)
        return found


def judges_of(discriminators: nn.ModuleList) -> list[Discriminator]:
    """The discriminators, the one of the smallest pictures first."""
    return [cast(Discriminator, judge) for judge in discriminators]


def shrunk(pixels: Tensor, side: int) -> Tensor:
    """Pictures at ``side`` x ``side``, a divisor of their side, by means of squares."""
    factor = pixels.shape[-1] // side
    return F.avg_pool2d(pixels, factor) if factor > 1 else pixels


def sides_of(side: int, stages: int) -> list[int]:
    """Sides of the stages' pictures, the smallest first."""
    return [side // 2**i for i in reversed(range(stages))]


def augmented(pixels: Tensor, place: Tensor, crop: float, flip: bool) -> Tensor:
    """Pictures enlarged ``crop`` times, cropped back at a random place, and every second one mirrored.

    Args:
        pixels: ``[N, 3, S, S]``. place: ``[N, 3]`` in 0..1: top, left, and mirrored below one half.
    """
    side = pixels.shape[-1]
    larger = round(side * crop)
    if larger > side:
        big = F.interpolate(pixels, (larger, larger), mode="bicubic", antialias=True).clamp(-1, 1)
        corners = (place[:, :2] * (larger - side + 1)).long()
        pixels = torch.stack(
            [picture[:, t : t + side, le : le + side] for picture, (t, le) in zip(big, corners.tolist(), strict=True)]
        )
    if flip:
        mirrored = (place[:, 2] < 0.5).view(-1, 1, 1, 1)
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
    return pixels


def _load(judges: nn.ModuleList, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        judges.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"The discriminators {path} cannot be read: {str(error).splitlines()[0]}",
            expected="those of the same recipe",
            remedy="train from the beginning under another recipe name",
        ) from error
