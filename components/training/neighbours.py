"""How DeepSpeed's ranks on the cores of one machine average gradients and gather weights: by memory that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from components.training.shared import Readers, SharedMemory, allocate


def attach(engine: Any, backend: Any) -> SharedMemory | None:
    """Have a DeepSpeed engine average gradients and gather weights without a detour. Every rank must call.

    A rank alone has nothing to average: DeepSpeed would flatten all gradients, send them nowhere and copy them back.
    Several ranks on the processor cores of one machine average through shared memory, and under ZeRO 1 and 2 only what
    a rank steps with. Those have one copy of the weights for all of them, of which each trains its part in place.

    Args:
        engine: of ZeRO stage 0, 1 or 2; stage 3 sends while it computes, which is left to gloo.
        backend: DeepSpeed's communication, ``deepspeed.comm.comm.cdb``.

    Returns:
        What to close after the engine, where there is anything.
    """
    cut = hasattr(engine.optimizer, "bit16_groups_flat")
    owner = engine.optimizer if cut else engine
    if dist.get_world_size() == 1:
        if not cut:
            engine.allreduce_no_retain = lambda *_, **__: None
        return None
    memory = SharedMemory.join() if engine.device.type == "cpu" else None
    if memory is None:
        return None
    stock = owner.allreduce_no_retain

    def allreduce_no_retain(bucket: Sequence[Tensor], *args: Any, **kwargs: Any) -> None:
        whole = kwargs.get("rank") is None and kwargs.get("output_bucket") is None and kwargs.get("divide", True)
        if whole and all(map(_plain, bucket)):
            memory.average(bucket, _readers(owner, bucket) if cut else None)
        else:
            stock(bucket, *args, **kwargs)

    owner.allreduce_no_retain = allreduce_no_retain
    if cut:
        _share_weights(engine.optimizer, memory, backend)
    return memory


def _plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def _readers(optimizer: Any, gradients: Sequence[Tensor]) -> list[Readers]:
    """Of each gradient in DeepSpeed's buckets, the ranks whose part of the weights its parameter reaches into."""
    found = {
        id(gradient): tuple(sorted(optimizer.param_to_partition_ids[group][parameter]))
        for bucket in optimizer.ipg_buckets.values()
        for gradient, (group, _, parameter) in zip(bucket.grads, bucket.params, strict=True)
    }
    return [found[id(gradient)] for gradient in gradients]


def _share_weights(optimizer: Any, memory: SharedMemory, backend: Any) -> None:
    """One copy of the weights for all ranks; it is master weights as well, where those are not elsewhere."""
    for i, flat in enumerate(optimizer.bit16_groups_flat):
        whole = allocate(len(flat)) if _plain(flat) else None
        if whole is None:
            continue
        if dist.get_rank() == 0:
            whole.copy_(flat)
        memory.meet()
        whole.trained_by = memory  # type: ignore[attr-defined]
        optimizer.bit16_groups_flat[i] = whole
        optimizer.parallel_partitioned_bit16_groups[i] = optimizer.get_data_parallel_partitions(whole, i)
        optimizer._update_model_bit16_weights(i)
        if not optimizer.cpu_offload:
            mine = optimizer.parallel_partitioned_bit16_groups[i][dist.get_rank()]
            optimizer.single_partition_of_fp32_groups[i].data = mine
    optimizer._link_all_hp_params()
    optimizer._update_model_bit16_weights = lambda _: None  # they are views of what is trained, and stay so
    stock = optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        memory.meet()  # the others may still read the weights, in their backward
        return stock(*args, **kwargs)

    optimizer.step = step
    _gather_at_a_meeting(backend)


def _gather_at_a_meeting(backend: Any) -> None:
    """Have DeepSpeed's gather of weights that ranks share only wait for them all."""
    stock = backend.all_gather_into_tensor
    if getattr(stock, "meets", False):
        return

    def all_gather_into_tensor(
        output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        memory = getattr(output_tensor, "trained_by", None)
        return memory.meet() if memory else stock(output_tensor, input_tensor, group, async_op)

    all_gather_into_tensor.meets = True  # type: ignore[attr-defined]
    backend.all_gather_into_tensor = all_gather_into_tensor
