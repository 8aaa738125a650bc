"""Several players in one training, in turns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.contracts.errors import TrainingError
from components.training.engine import Optimiser
from components.training.loop import train
from components.training.turns import averaged_turns, frozen, turns_of
from tests.components.training.tiny import PLAN, Stopped, Tiny, weights_of


class Critic(nn.Module):
    """Tells pairs of the data from the generator's."""

    def __init__(self, critic: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.critic, self._others = critic, (generator,)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            drawn = self._others[0](x.flatten(1))
        real, fake = (self.critic(torch.cat([x.flatten(1), z], 1)) for z in (y, drawn))
        return {"loss": (1 - real).relu().mean() + (1 + fake).relu().mean(), "gap": (real - fake).mean()}


class Draw(nn.Module):
    """The generator, against the critic."""

    def __init__(self, generator: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.generator, self._others = generator, (critic,)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        drawn = self.generator(x.flatten(1))
        with frozen(*self._others):
            verdict = self._others[0](torch.cat([x.flatten(1), drawn], 1))
        error = nn.functional.mse_loss(drawn, y)
        return {"loss": error - 0.01 * verdict.mean(), "error": error.detach()}


class Pair(nn.Module):
    averaged = ("generator",)

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        self.critic = nn.utils.parametrizations.spectral_norm(nn.Linear(35, 1))

    def turns(self) -> dict[str, nn.Module]:
        return {"critic": Critic(self.critic, self.generator), "generator": Draw(self.generator, self.critic)}


class PairTask(Tiny):
    def build(self) -> nn.Module:
        return Pair()

    def optimisers(self) -> dict[str, Optimiser]:
        return {"critic": Optimiser(2e-3, 0.0, 0.0, 1.0, betas=(0.5, 0.999))}


PAIR = replace(PLAN, images=20 * 8, checkpoint_every_s=0.0)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_turns_are_trained_averaged_and_gone_on_with(stage: int, tmp_path: Path) -> None:
    plan = replace(PAIR, zero_stage=stage)
    for name in ("calm", "stopped"):
        (tmp_path / name).mkdir()
    train(PairTask(), plan, tmp_path / "calm")
    with pytest.raises(Stopped):
        train(PairTask(stop_at=9), plan, tmp_path / "stopped")
    train(PairTask(), plan, tmp_path / "stopped")
    for name in ("weights.safetensors", "model.safetensors", "optimiser.safetensors"):
        theirs = weights_of(tmp_path / "calm", name)
        assert all(torch.equal(w, theirs[k]) for k, w in weights_of(tmp_path / "stopped", name).items()), name
    point = json.loads((tmp_path / "calm" / "curve.jsonl").read_text().splitlines()[-1])
    assert {"loss", "critic_loss", "critic_gap", "generator_loss", "generator_error", "gradient_norm"} <= point.keys()
    assert point["loss"] == point["generator_loss"]

    weights, model = weights_of(tmp_path / "calm"), weights_of(tmp_path / "calm", "model.safetensors")
    assert not torch.equal(weights["generator.0.weight"], model["generator.0.weight"])
    critic = [name for name in weights if name.startswith("critic")]
    assert critic and all(torch.equal(weights[name], model[name]) for name in critic)  # not averaged
    moments = weights_of(tmp_path / "calm", "optimiser.safetensors")
    assert {name.partition("/")[0] for name in moments if "critic" in name} == {"exp_avg", "exp_avg_sq"}
    assert "momentum_buffer/generator.0.weight" in moments
    fresh = Pair()
    assert model.keys() == fresh.state_dict().keys()  # buffers of both norms too
    fresh.load_state_dict(model)
    assert fresh.generator[1].num_batches_tracked == 40  # two turns a step


def test_the_last_stage_is_refused_for_several_players(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"2 players \(critic, generator\) with run.zero_stage 3.*zero_stage=2"):
        train(PairTask(), replace(PAIR, zero_stage=3), tmp_path)


def test_a_parameter_has_one_turn() -> None:
    class Both(Pair):
        def turns(self) -> dict[str, nn.Module]:
            return {"one": self.generator, "other": self.generator}

    class Strange(Pair):
        def turns(self) -> dict[str, nn.Module]:
            return {"one": nn.Linear(1, 1)}

    with pytest.raises(TrainingError, match=r"0.weight of turn other is trained in turn one too"):
        turns_of(Both())
    with pytest.raises(TrainingError, match=r"weight of turn one is not the root's"):
        turns_of(Strange())
    plain: Any = nn.Linear(1, 1)
    assert turns_of(plain) == {"": plain} and averaged_turns(plain) == ("",)


def test_frozen_modules_pass_gradients_on() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    assert layer.weight.requires_grad and not layer.bias.requires_grad
