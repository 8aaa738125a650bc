"""DeepSpeed around a module: the only importer of deepspeed.

Master weights are fp32; the forward runs under autocast where the recipe says bf16. ZeRO stage 0 to 3 decides
what each rank keeps. Matrices are trained with Muon (Jordan 2024, "Muon: An optimizer for hidden layers"),
embeddings, biases and norms with AdamW; without Muon everything goes to AdamW.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.contracts.errors import TrainingError


@dataclass(frozen=True)
class Optimiser:
    """Learning rates at their plateau. ``muon_rate`` 0 trains everything with AdamW."""

    adam_rate: float
    muon_rate: float
    weight_decay: float
    gradient_clip: float  # of AdamW's gradients; Muon's steps have a fixed norm and need none


def joined_group() -> tuple[int, int]:
    """Rank and world of the process group that is there, or of a group of one, made for this process's life."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    if not dist.is_initialized():
        # DeepSpeed keeps a group for as long as the process lives, so it is not destroyed after a training
        for key, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            os.environ.setdefault(key, value)
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()


class Engine:
    """One module in training on this rank.

    Args:
        module: its ``forward(**batch)`` returns a dict with ``loss`` and scalars to log.
        optimiser: rates.
        zero_stage: 0 to 3.
        batch_size: of this rank.
        bf16: forward under autocast to bfloat16.
    """

    def __init__(self, module: nn.Module, optimiser: Optimiser, zero_stage: int, batch_size: int, bf16: bool) -> None:
        import deepspeed

        _fit_to_this_project()
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.device = torch.device(_device_name())
        self._bf16, self._stage = bf16, zero_stage
        module.to(self.device).train()
        self._named: list[tuple[str, Any]] = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        size = sum(p.numel() for _, p in self._named)
        self._engine: Any = deepspeed.initialize(
            model=module,
            model_parameters=[p for _, p in self._named],
            dist_init_required=False,
            config=_config(optimiser, zero_stage, batch_size, size),
        )[0]
        self._rates = [group["lr"] for group in self._groups()]

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Forward of this rank's share."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            return dict(self._engine(**{k: v.to(self.device, non_blocking=True) for k, v in batch.items()}))

    def step(self, loss: Tensor, factor: float) -> None:
        """Backward, average over ranks, and one optimiser step at ``factor`` times the rates."""
        for group, rate in zip(self._groups(), self._rates, strict=True):
            group["lr"] = rate * factor
        self._engine.backward(loss)
        self._engine.step()

    def shards(self) -> list[Tensor]:
        """What this rank holds of the fp32 weights: all of them, or its part under ZeRO-3."""
        return [p.ds_tensor if self._stage == 3 else p.data for _, p in self._named]

    def full(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole tensors by name of ``values``, which lie as :meth:`shards` do. Every rank must call."""
        if self._stage < 3:
            return {n: v.detach().cpu().clone() for (n, _), v in zip(self._named, values, strict=True)}
        import torch.distributed as dist

        whole = {}
        for (name, weight), part in zip(self._named, values, strict=True):
            parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, part.contiguous())
            whole[name] = torch.cat(parts)[: weight.ds_numel].view(weight.ds_shape).cpu()
        return whole

    def part(self, whole: Mapping[str, Tensor]) -> list[Tensor]:
        """The inverse of :meth:`full`: what lies here of whole tensors."""
        if self._stage < 3:
            return [whole[n].to(self.device) for n, _ in self._named]
        import torch.distributed as dist

        parts, rank = [], dist.get_rank()
        for name, weight in self._named:
            size = weight.ds_tensor.numel()
            piece = torch.zeros(size, device=self.device)
            flat = whole[name].flatten()[rank * size : (rank + 1) * size]
            piece[: flat.numel()] = flat
            parts.append(piece)
        return parts

    def save(self, folder: Path) -> None:
        """Everything a bit-true continuation needs on this number of ranks. Every rank must call."""
        self._engine.save_checkpoint(str(folder), tag="engine", save_latest=False)

    def restore(self, folder: Path) -> None:
        """Continue from :meth:`save`, with the same number of ranks and ZeRO stage.

        Raises:
            TrainingError: the files are not readable.
        """
        path, _ = self._engine.load_checkpoint(str(folder), tag="engine", load_lr_scheduler_states=False)
        if path is None:
            raise TrainingError(
                f"The checkpoint {folder} cannot be read",
                expected="the files that the interrupted training wrote",
                remedy="delete that folder and run the same command again; the training then starts over",
            )

    def _groups(self) -> list[dict[str, Any]]:
        return list(self._engine.optimizer.param_groups)


def _fit_to_this_project() -> None:
    """Mend what stands in the way of small trainings and of convolutions in DeepSpeed 0.19."""
    import deepspeed.ops
    import torch._dynamo
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    if not torch.cuda.is_available():
        # Newton-Schulz and a shared-memory kernel, which training does not use, would be compiled by a C++
        # compiler at the first step of a process: that takes longer than a short training
        torch._dynamo.config.disable = True
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stock: Callable[..., Tensor] = original_muon.muon_update
    if getattr(stock, "reads_filters", False):
        return

    def muon_update(grad: Tensor, momentum: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A filter ``[out, in, h, w]`` as the matrix ``[out, in*h*w]``; the stock one compares the two shapes."""
        if grad.ndim <= 2 or kwargs.get("is_expert_group"):
            return stock(grad, momentum, *args, **kwargs)
        rows = len(grad)
        return stock(grad.reshape(rows, -1), momentum.view(rows, -1), *args, **kwargs).view(grad.shape)

    muon_update.reads_filters = True  # type: ignore[attr-defined]
    original_muon.muon_update = muon_optimizer.muon_update = muon_update


def _config(optimiser: Optimiser, stage: int, batch_size: int, size: int) -> dict[str, Any]:
    muon = optimiser.muon_rate > 0
    bucket = min(size // 1024 + 1, 500_000) * 1024  # elements, of an even number
    decay = {"weight_decay": optimiser.weight_decay}
    adam = {"betas": [0.9, 0.99], "torch_adam": True, **decay}
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
    return {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,
        "optimizer": kind,
        "gradient_clipping": 0.0 if muon else optimiser.gradient_clip,
        "zero_optimization": {
            "stage": stage,
            # one bucket for the whole of a small model: fewer, larger messages
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": torch.cuda.is_available(),
            "reduce_scatter": not (muon and stage == 3),
            "contiguous_gradients": torch.cuda.is_available(),
        },
        "steps_per_print": 2**31,
    }


def _device_name() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
