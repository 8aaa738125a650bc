"""Memory and operations of a training step, reckoned before it: nothing is computed, and no weight is made.

The module, forward and backward run on fake tensors, which have shapes and types but no content, and every storage
that would be made is counted while it lives. What DeepSpeed keeps besides, by ZeRO stage, follows Rajbhandari et al.
2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", sec. 3, for fp32 weights, and what
DeepSpeed 0.19 allocates in a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from components.training.shared import bytes_of
from components.training.turns import turns_of

_FLOAT = 4  # bytes; weights, gradients, moments and averages are fp32
_BUCKET = 500_000 * 1024  # elements at most of engine.py's reduce bucket
_LIVE = 1_000_000_000  # elements that ZeRO-3 leaves gathered at most


@dataclass(frozen=True)
class Pass:
    """One forward and backward of one worker's samples."""

    parameters: int  # trained elements
    matrices: int  # of them, those that Muon would train
    largest: int  # elements of the largest trained parameter
    frozen_bytes: int  # of weights that are not trained, and of buffers
    peak_bytes: int  # most held at once beside the weights, gradients as they come included
    kept_bytes: int  # activations held between forward and backward
    flops: float  # of both


@dataclass(frozen=True)
class Estimate:
    """Bytes of one worker at the most."""

    states: int  # weights, master weights, moments and average, as the ZeRO stage cuts them
    step: int  # gradients, buckets and activations, at the moment when they are most
    host: int = 0  # of states that are offloaded to host memory

    @property
    def device(self) -> int:
        """On the device; on a CPU the offloaded part lies in the same memory."""
        return self.states + self.step


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are made inside and still live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def know(self, tensor: Tensor) -> None:
        """A storage that was there before is not counted."""
        self._known.add(tensor.untyped_storage()._cdata)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon trains it: what has rows and columns, embeddings and tables left out, as engine.py does."""
    lower = name.lower()
    named = any(word in lower for word in ("embed", "lm_head")) or name.endswith("scale_shift_table")
    return parameter.ndim >= 2 and not named


def fake_pass(
    build: Callable[[], nn.Module], example: Callable[[int], dict[str, Tensor]], count: int, bf16: bool,
    recompute: bool = False,
) -> Pass:  # fmt: skip
    """Forward and backward of ``count`` samples on fake tensors.

    Args:
        bf16: under autocast to bf16. recompute: with gradient checkpointing.

    Raises:
        whatever the module raises at batches of this shape.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        module, batch = build(), example(count)
        if recompute and callable(switch := getattr(module, "enable_gradient_checkpointing", None)):
            switch()
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        everything = [*module.parameters(), *module.buffers()]
        storages, flops = _Storages(), FlopCounterMode(display=False, custom_mapping=_ATTENTION)
        for tensor in (*everything, *batch.values()):
            storages.know(tensor)
        kept = 0
        with flops, storages:
            for turn in turns_of(module).values():  # of a model with several players; else the module itself
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = turn(**batch)["loss"]
                kept = max(kept, storages.now)
                loss.backward()
                del loss
                module.zero_grad(set_to_none=True)
        size = sum(t.numel() * t.element_size() for t in everything)
        elements = sum(p.numel() for _, p in trained)
        return Pass(
            parameters=elements,
            matrices=sum(p.numel() for name, p in trained if is_matrix(name, p)),
            largest=max((p.numel() for _, p in trained), default=0),
            frozen_bytes=size - elements * _FLOAT,
            peak_bytes=storages.peak,
            kept_bytes=kept,
            flops=float(flops.get_total_flops()),
        )


def estimate(
    found: Pass, *, zero_stage: int, workers: int, muon: bool, average: bool, offload: bool = False,
    accumulate: int = 1, nearby: bool = False,
) -> Estimate:  # fmt: skip
    """Bytes of a worker at the most, in a step.

    Args:
        found: of one worker's samples of one pass.
        muon: matrices are trained by Muon, which keeps one moment, the rest by AdamW, which keeps two.
        average: a moving average is kept.
        offload: master weights and moments lie in host memory.
        accumulate: passes a step.
        nearby: the workers are on the processor cores of one machine, see :mod:`components.training.shared`.
    """
    weights = found.parameters * _FLOAT
    moments = 2 * weights - (found.matrices * _FLOAT if muon else 0)
    averages = weights if average else 0
    fixed = found.frozen_bytes
    if workers == 1 and zero_stage == 0:
        bucket = 0  # nothing is exchanged
    elif nearby and zero_stage < 3:
        bucket, fixed = 0, fixed + bytes_of(found.parameters, workers)
    else:
        bucket = min(found.parameters, _BUCKET) * _FLOAT
    kept_gradients = weights if zero_stage < 2 else weights // workers
    during = found.peak_bytes + (kept_gradients if accumulate > 1 else 0)
    after = weights + bucket + (kept_gradients if zero_stage == 2 and 0 < bucket < weights else 0)
    step = max(during, after)
    if zero_stage == 0:
        return Estimate(weights + moments + averages + fixed, step)
    alone = offload or zero_stage == 3 or not nearby  # master weights; else the weights serve as such
    cut = (weights * alone + moments + averages) // workers
    if zero_stage < 3:
        fixed += weights
    else:
        fixed = (2 * weights + found.frozen_bytes) // workers  # shards, and gradients of the same size
        step += min(found.parameters, _LIVE) * _FLOAT + found.largest * _FLOAT
    return Estimate(fixed, step, cut) if offload else Estimate(fixed + cut, step)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    from torch.utils.flop_counter import sdpa_backward_flop_count

    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_ATTENTION: dict[Any, Any] = {  # that the counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
