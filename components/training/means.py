"""Rates of a training and how it uses the hardware, and what DeepSpeed is told of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Optimiser:
    """Learning rates at their plateau. ``muon_rate`` 0 trains everything with AdamW."""

    adam_rate: float
    muon_rate: float
    weight_decay: float
    gradient_clip: float  # of AdamW's gradients; Muon's steps have a fixed norm and need none
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW


@dataclass(frozen=True)
class Means:
    """How a module is trained on the hardware at hand; never what comes out of it, up to rounding."""

    zero_stage: int = 1
    offload: bool = False  # master weights and optimiser state in host memory
    accumulate: int = 1  # passes, each on an equal part of the batch, before a step
    bf16: bool = False
    compile: bool = False  # the module by torch.compile


def deepspeed_config(optimiser: Optimiser, means: Means, batch_size: int, size: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        batch_size: of one pass on this rank. size: of the model, in numbers.
    """
    muon, stage = optimiser.muon_rate > 0, means.zero_stage
    bucket = min(size // 1024 + 1, 500_000) * 1024  # elements, of an even number
    decay = {"weight_decay": optimiser.weight_decay}
    adam = {"betas": list(optimiser.betas), "torch_adam": True, **decay}
    if muon:
        kind = {
            "type": "Muon",
            "params": {
                "muon_lr": optimiser.muon_rate, "adam_lr": optimiser.adam_rate, "momentum": 0.9,
                "ns_method": "standard", **adam,
            },
        }  # fmt: skip
    else:
        kind = {"type": "AdamW", "params": {"lr": optimiser.adam_rate, **adam}}
    zero: dict[str, Any] = {
        "stage": stage,
        # one bucket for the whole of a small model: fewer, larger messages
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": torch.cuda.is_available(),
        "reduce_scatter": not (muon and stage == 3),
        "contiguous_gradients": torch.cuda.is_available(),
    }
    if means.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    elif stage in (1, 2):
        zero["compute_grad_norm"] = False  # the engine measures the norm, before Muon's steps take its place, and clips
    return {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": means.accumulate,
        "optimizer": kind,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
