"""Samplers as tables: the same steps as diffusers' own classes take, row by row and in any mixture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import ArtifactError, InputError
from components.models.samplers import EULER, NAMES, OWN, UNIPC, Samplers, advance, make_scheduler, start

SHAPE = (4, 3, 5)
KINDS = {
    "flow": make_scheduler("flow"),
    "shifted flow": make_scheduler("flow", shift=3.0),
    "epsilon": make_scheduler("epsilon"),
    "v": make_scheduler("v", zero_terminal_snr=True),
}


def model(latents: torch.Tensor, time: Any) -> torch.Tensor:
    """Stands for a denoiser: depends on latents and time, and not linearly."""
    return torch.tanh(latents * (0.5 + float(time) / 2000)) + 0.1 * latents.flip(-1)


def stock(scheduler: Any, steps: int, noise: torch.Tensor) -> torch.Tensor:
    """The way a stock pipeline samples."""
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        shown = scheduler.scale_model_input(latents, time)
        latents = scheduler.step(model(shown, time), time, latents, return_dict=False)[0]
    return latents


def tabled(samplers: Samplers, asked: list[tuple[str, int]], noises: list[torch.Tensor]) -> list[torch.Tensor]:
    """All in one batch, which each leaves when it is done."""
    tables = [samplers.table(name, steps) for name, steps in asked]
    kept, step = [start(noise) for noise in noises], [0] * len(asked)
    while left := [i for i, table in enumerate(tables) if step[i] < table.steps]:
        batch = torch.stack([kept[i] for i in left])
        said = torch.stack([model(kept[i][0], tables[i].times[step[i]]) for i in left])
        weights = torch.stack([tables[i].weights[step[i]] for i in left])
        for i, after in zip(left, advance(batch, said, weights), strict=True):
            kept[i] = after
            step[i] += 1
    return [each[0] for each in kept]


def stock_of(name: str, scheduler: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    if name == UNIPC:
        return UniPCMultistepScheduler.from_config(scheduler.config, solver_type="bh2")
    order = {"solver_order": 1} if name == EULER else {}
    return DPMSolverMultistepScheduler.from_config(scheduler.config, **order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_table_takes_the_steps_of_the_stock_class(kind: str, name: str) -> None:
    scheduler = KINDS[kind]
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for steps in (1, 2, 3, 7, 20):
        expected = stock(stock_of(name, scheduler), steps, noise[None])[0]
        found = tabled(Samplers(scheduler), [(name, steps)], [noise])[0]
        scale = float(expected.abs().max())
        assert torch.allclose(found, expected, atol=2e-4 * scale), (steps, float((found - expected).abs().max()), scale)


@pytest.mark.parametrize(("kind", "limit"), [("flow", 2e-3), ("shifted flow", 2e-3), ("epsilon", 2e-3)])
def test_euler_is_what_diffusers_calls_euler(kind: str, limit: float) -> None:
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    scheduler, steps = KINDS[kind], 10
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    table = Samplers(scheduler).table(EULER, steps)
    if kind == "epsilon":
        same = EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing"
        )
        same.set_timesteps(steps)
        # it counts in another unit: its latents are ours by sqrt(1 + sigma^2)
        sigma = float(same.sigmas[0])
        latents, scale = noise * (1 + sigma**2) ** 0.5, lambda s: (1 + float(s) ** 2) ** 0.5
    else:
        same = FlowMatchEulerDiscreteScheduler()
        same.set_timesteps(sigmas=(table.times / 1000).tolist())
        latents, scale = noise, lambda s: 1.0
    kept = start(noise)
    for i, time in enumerate(table.times):
        kept = advance(kept[None], model(kept[0], time)[None], table.weights[i][None])[0]
        said = model(latents / scale(same.sigmas[i]), time)
        latents = same.step(said, same.timesteps[i], latents, return_dict=False)[0]
    # times are whole numbers in a table and in diffusers' pipelines, and sigmas are not
    assert float((kept[0] - latents).abs().max()) < limit * float(latents.abs().max())


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 9)), min_size=1, max_size=6), st.integers(0, 99))
def test_rows_do_not_depend_on_each_other(asked: list[tuple[str, int]], seed: int) -> None:
    noises = list(torch.randn(len(asked), *SHAPE, generator=torch.Generator().manual_seed(seed)))
    samplers = Samplers(KINDS["flow"])
    together = tabled(samplers, asked, noises)
    for one, noise, found in zip(asked, noises, together, strict=True):
        assert torch.equal(tabled(samplers, [one], [noise])[0], found)


def test_what_is_expected_is_the_prediction_of_the_picture() -> None:
    """With a perfect prediction, the picture is known after the first step."""
    noise, picture = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    for name in NAMES:
        table = Samplers(KINDS["flow"]).table(name, 5)
        kept = advance(start(noise)[None], (noise - picture)[None], table.weights[0][None])[0]
        assert torch.allclose(kept[1], picture, atol=5e-3)  # the first noise level is 0.999


def test_times_are_those_of_the_training() -> None:
    for name in NAMES:
        times = np.asarray(Samplers(KINDS["shifted flow"]).table(name, 8).times)
        assert (np.diff(times) < 0).all() and times[-1] >= 0 and times[0] in (998, 999, 1000)
    own, euler = (Samplers(KINDS["v"]).table(name, 6).times.tolist() for name in (OWN, EULER))
    assert own == euler and own[0] == 999


def test_wrong_names_and_other_schedulers_are_refused() -> None:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    samplers = Samplers(KINDS["flow"])
    assert samplers.table(None, 4) is samplers.table(OWN, 4)
    with pytest.raises(InputError, match=r"no sampler 'ddim'.*dpm\+\+, euler, unipc"):
        samplers.table("ddim", 4)
    sde = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    for other in (DDIMScheduler(), sde, DPMSolverMultistepScheduler(thresholding=True)):
        with pytest.raises(ArtifactError, match=r"scheduler is a .*Remedy"):
            Samplers(other)
