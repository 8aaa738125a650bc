"""Noise levels, and samplers by name, as tables of numbers that a whole batch takes one step with.

Each of these samplers is linear in what it knows: the next latents are a weighted sum of the latents, the prediction
and what was kept of the steps before. The weights are read off diffusers' own scheduler, once for a sampler and a
number of steps, by handing it unit vectors. A batch then takes its step in a few operations, whatever sampler, number
of steps and place in them each of its rows has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.contracts.errors import ArtifactError, InputError

NOISE_LEVELS = 1000  # diffusers counts noise levels from 0 to this
OWN, EULER, UNIPC = "dpm++", "euler", "unipc"
NAMES = (OWN, EULER, UNIPC)
KNOWN = 5  # latents, prediction, last two predictions of the picture, UniPC's corrected latents of the step before
KEPT = 4  # what a picture keeps from step to step: all of these but the prediction
_MOST_TABLES = 256


def make_scheduler(prediction: str = "flow", shift: float = 1.0, zero_terminal_snr: bool = False) -> Any:
    """DPM-Solver++ (Lu et al. 2022) of second order, on the noise levels of the training.

    Args:
        prediction: "flow", "epsilon" or "v". shift: of the flow's times, as in training.
        zero_terminal_snr: "v": the last level is pure noise (Lin et al. 2024, "Common Diffusion Noise Schedules
            and Sample Steps Are Flawed").
    """
    from diffusers import DPMSolverMultistepScheduler

    if prediction == "flow":
        # steps_offset is not read with flow noise levels, but the stock pipeline warns of any other value
        return DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, steps_offset=1
        )
    return DPMSolverMultistepScheduler(
        **_STABLE_DIFFUSION,
        prediction_type="epsilon" if prediction == "epsilon" else "v_prediction",
        rescale_betas_zero_snr=zero_terminal_snr and prediction == "v",
        timestep_spacing="trailing",  # the first step of sampling is the last noise level (same paper, sec. 3.3)
        steps_offset=1,
    )


_STABLE_DIFFUSION: dict[str, Any] = {  # Rombach et al. 2022, table 15
    "num_train_timesteps": NOISE_LEVELS, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
}  # fmt: skip


def alpha_bars(zero_terminal_snr: bool) -> Any:
    """Cumulative products of ``1 - beta``, fp32 ``[NOISE_LEVELS]``: those that :func:`make_scheduler` samples on."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(**_STABLE_DIFFUSION, rescale_betas_zero_snr=zero_terminal_snr).alphas_cumprod


@dataclass(frozen=True)
class Table:
    """One sampler with one number of steps.

    Args:
        times: noise levels, int64 ``[steps]``, as the denoiser is told them.
        weights: fp32 ``[steps, 3, KNOWN]``. Rows: the next latents, the prediction of the picture (x0), and the
            corrected latents that UniPC keeps; columns as :data:`KNOWN` lists them.
    """

    times: Any
    weights: Any

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.times)


class Samplers:
    """The samplers of a model.

    * ``dpm++``: the model's own, DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", alg. 2)
    * ``euler``: its first order, which is DDIM (ibid., sec. 4.1) and, with flow matching, Euler's method
    * ``unipc``: UniPC of second order (Zhao et al. 2023, "UniPC", alg. 1 and 2)

    All take the noise levels of the training, with its time shift, from the config of the model's scheduler.

    Raises:
        ArtifactError: the scheduler is not linear, or of another kind.
    """

    def __init__(self, scheduler: Any) -> None:
        config, kind = scheduler.config, type(scheduler).__name__
        if kind != "DPMSolverMultistepScheduler" or config.algorithm_type != "dpmsolver++" or config.thresholding:
            raise ArtifactError(
                f"The model's scheduler is a {kind} ({config.get('algorithm_type')}"
                f"{', with thresholding' if config.get('thresholding') else ''})",
                expected="a DPMSolverMultistepScheduler of algorithm_type dpmsolver++ without thresholding",
                remedy="train and assemble the model again, or correct scheduler/scheduler_config.json",
            )
        self._config = config
        self._tables: dict[tuple[str, int], Table] = {}

    def table(self, name: str | None, steps: int) -> Table:
        """The sampler called ``name`` (None: the model's own) with ``steps`` steps, at least 1.

        Raises:
            InputError: there is no such sampler.
        """
        key = (name or OWN, steps)
        if key not in self._tables:
            if key[0] not in NAMES:
                raise InputError(
                    f"There is no sampler {name!r}", expected=f"one of {', '.join(NAMES)}", remedy="choose one of these"
                )
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            self._tables[key] = table_of(self._scheduler(key[0]), steps)
        return self._tables[key]

    def _scheduler(self, name: str) -> Any:
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        if name == UNIPC:
            return UniPCMultistepScheduler.from_config(self._config, solver_order=2, solver_type="bh2")
        order = {"solver_order": 1} if name == EULER else {}
        return DPMSolverMultistepScheduler.from_config(self._config, **order)


def table_of(scheduler: Any, steps: int) -> Table:
    """The table of a diffusers scheduler that predicts the picture: multistep DPM-Solver++ up to third order, or
    UniPC up to second."""
    import torch

    order = scheduler.config.solver_order
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    # five "latents" of one number each, so that what comes out is the five weights
    latents, prediction, last, before, corrected = torch.eye(KNOWN)[..., None]
    nothing = torch.zeros_like(latents)
    weights = torch.zeros(len(scheduler.timesteps), 3, KNOWN)
    for i, time in enumerate(scheduler.timesteps):
        if i:  # what the scheduler kept of the steps before is known by these names
            scheduler.model_outputs = [nothing, before, last][3 - order :]
            if hasattr(scheduler, "last_sample"):
                scheduler.last_sample = corrected
        following = scheduler.step(prediction, time, latents, return_dict=False)[0]
        kept = getattr(scheduler, "last_sample", nothing)
        weights[i] = torch.stack([following, scheduler.model_outputs[-1], kept])[..., 0]
    return Table(scheduler.timesteps.clone(), weights)


def start(noise: Any) -> Any:
    """What a picture keeps before its first step: ``[KEPT, C, h, w]`` of noise ``[C, h, w]``."""
    import torch

    return torch.cat([noise[None], torch.zeros(KEPT - 1, *noise.shape, device=noise.device)])


def advance(kept: Any, predicted: Any, weights: Any) -> Any:
    """One step of every row.

    Args:
        kept: fp32 ``[N, KEPT, C, h, w]``: latents, last two predictions of the picture, corrected latents.
        predicted: the denoiser's, fp32 ``[N, C, h, w]``.
        weights: of each row's table at its step, ``[N, 3, KNOWN]``.

    Returns:
        ``kept`` after the step. A row's numbers do not depend on the other rows.
    """
    import torch

    latents, last, before, corrected = kept.unbind(1)
    known = (latents, predicted, last, before, corrected)
    each = weights[..., None, None, None].unbind(2)  # KNOWN times [N, 3, 1, 1, 1]
    following = sum(weight * value[:, None] for weight, value in zip(each, known, strict=True))
    assert isinstance(following, torch.Tensor)
    return torch.stack([following[:, 0], following[:, 1], last, following[:, 2]], 1)
