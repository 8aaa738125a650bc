"""DeepSpeed around a module: the only importer of deepspeed.

Master weights are fp32; the forward runs under autocast where the recipe says bf16. ZeRO stage 0 to 3 decides
what each rank keeps. Matrices are trained with Muon (Jordan 2024, "Muon: An optimizer for hidden layers"),
embeddings, biases and norms with AdamW; without Muon everything goes to AdamW.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.runtime.precision import autocast, has_bf16
from components.training.layout import Gatherer, Layout, layout_of, scatter, squares_of
from components.training.means import Means, Optimiser, deepspeed_config
from components.training.neighbours import attach

__all__ = ["Engine", "Means", "Optimiser", "joined_group"]

_ADAM, _MUON = ("exp_avg", "exp_avg_sq"), "momentum_buffer"  # as torch and DeepSpeed call them
_TABLES = ("scale_shift_table",)  # two dimensions, but no matrix between layers: for AdamW


def joined_group() -> tuple[int, int]:
    """Rank and world of the process group: the one that is there, torchrun's, or a group of this process alone."""
    from torch._C._distributed_c10d import HashStore

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"} <= os.environ.keys():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group(backend)
        else:
            # DeepSpeed keeps a group for as long as the process lives, so it is not destroyed after a training
            for key, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
                os.environ.setdefault(key, value)
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return dist.get_rank(), dist.get_world_size()


class Engine:
    """One module in training on this rank. Made, stepped and gathered by every rank at once.

    Args:
        module: its ``forward(**batch)`` returns a dict with ``loss`` and scalars to log.
        optimiser: rates.
        means: ZeRO stage, offload, accumulation, precision.
        batch_size: of this rank, in samples of one step.
        names: of the trained parameters, by ``id``; as ``named_parameters`` has them where it is None.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: Optimiser,
        means: Means,
        batch_size: int,
        names: Mapping[int, str] | None = None,
    ) -> None:
        import deepspeed

        _fit_to_this_project(means.compile)
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.device = torch.device(_device_name())
        self._means = means
        self._limit = 0.0 if optimiser.muon_rate > 0 else optimiser.gradient_clip
        module.to(self.device).train()
        if means.compile:
            module.compile()
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        named: list[tuple[str, Any]] = [(names[id(p)] if names else n, p) for n, p in trained]
        self.shapes = {name: p.shape for name, p in named}
        size = sum(p.numel() for _, p in named)
        self._engine: Any = deepspeed.initialize(
            model=module,
            model_parameters=[p for _, p in named],
            dist_init_required=False,
            config=deepspeed_config(optimiser, means, batch_size // means.accumulate, size),
        )[0]
        self._memory = attach(self._engine, deepspeed.comm.comm.cdb) if means.zero_stage < 3 else None
        self._parameters = [p for _, p in named]
        for group in self._base.param_groups:
            if not group.get("use_muon"):
                group["fused"], group["foreach"] = True, False  # one kernel: several times as fast on a CPU
        self._rates = [group["lr"] for group in self._base.param_groups]
        self.layout: Layout = layout_of(self._engine, named, means.zero_stage, means.offload)
        self._adam = [p for p in self.layout.pieces if not self.layout.matrices[p.part]]
        self._whole = Gatherer(self.layout.pieces, self.shapes, self.device)
        self._moments = Gatherer(self._adam, self.shapes, self.device)
        self._momenta = Gatherer(self.layout.momenta, self.shapes, self.device)
        self._squares: Tensor | None = None
        self._norm: Tensor | None = None
        self._watch_gradients()

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Forward of this rank's share, or of a part of it."""
        with autocast(self.device.type, self._means.bf16):
            return dict(self._engine(**batch))

    def step(self, batch: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """One optimiser step on this rank's share of a batch, at ``factor`` times the rates.

        Forward and backward run on ``accumulate`` parts of the batch one after the other; gradients are averaged
        over parts and ranks.

        Returns:
            The scalars, averaged over the parts; they lie on the device.
        """
        for group, rate in zip(self._base.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        sums: dict[str, Tensor] = {}
        self._squares = self._norm = None
        for part in _parts(batch, self._means.accumulate):
            scalars = self(part)
            self._engine.backward(scalars["loss"])
            if self._engine.is_gradient_accumulation_boundary():
                self._measure_gradients()
                if self._limit:  # AdamW scales gradients in the pass over them that it makes anyway
                    self._base.grad_scale = (self.gradient_norm() / self._limit).clamp(min=1.0)
            self._engine.step()
            for key, value in scalars.items():
                sums[key] = sums[key] + value.detach() if key in sums else value.detach()
        return {key: value / self._means.accumulate for key, value in sums.items()}

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """The module in evaluation mode, without gradients."""
        self._engine.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._engine.train()

    def close(self) -> None:
        """Take DeepSpeed's hooks off the module and let go of its memory; nothing else may be called after this."""
        self._engine.destroy()
        del self._engine
        if self._memory:
            self._memory.close()

    def gradient_norm(self) -> Tensor:
        """Norm of the last step's gradient over all parameters and ranks, before clipping. Every rank must call."""
        if self._norm is None:
            mine = self._squares if self._squares is not None else torch.zeros(())
            squares = mine.to(self.device, torch.float32).reshape(1).clone()
            if self._means.zero_stage > 0:  # else every rank has all of it
                (self._memory.sum if self._memory else dist.all_reduce)(squares)
            self._norm = squares.sqrt().squeeze()
        return self._norm

    def gather(self, parts: Sequence[Tensor]) -> dict[str, Tensor] | None:
        """Whole tensors by name, on rank 0, of values that lie as ``layout.parts`` do. Every rank must call."""
        return self._whole.gather(parts)

    def scatter(self, whole: Mapping[str, Tensor]) -> list[Tensor]:
        """The inverse of :meth:`gather`, on every rank by itself."""
        parts = [torch.zeros_like(p) for p in self.layout.parts]
        scatter(whole, self.layout.pieces, parts)
        return parts

    def show(self, parts: Sequence[Tensor]) -> None:
        """Put values that lie as ``layout.parts`` do into the weights that the forward uses. Every rank must call."""
        import deepspeed

        stage, optimizer = self._means.zero_stage, self._engine.optimizer
        if stage == 0:
            torch._foreach_copy_([p.data for p in self._parameters], list(parts))
            return
        if stage == 3:
            for flat, part in zip(optimizer.fp16_partitioned_groups_flat, parts, strict=True):
                flat.data.copy_(part)
            if whole := optimizer.persistent_parameters:  # small ones stay whole between steps
                whole[0].partition(whole)  # else they count as there, and are not gathered anew
                whole[0].all_gather(whole)
            return
        dist.barrier()  # where ranks share the weights, none may still read them
        groups = zip(optimizer.bit16_groups_flat, optimizer.parallel_partitioned_bit16_groups, parts, strict=True)
        for flat, slots, part in groups:
            mine = slots[dist.get_rank()]
            mine.copy_(part)
            deepspeed.comm.all_gather_into_tensor(flat, mine)

    def moments(self) -> dict[str, Tensor] | None:
        """The optimiser's state, whole, as ``exp_avg/<parameter>`` and so on; on rank 0. Every rank must call."""
        found: dict[str, Tensor] = {}
        for key, gatherer in (*((key, self._moments) for key in _ADAM), (_MUON, self._momenta)):
            whole = gatherer.gather([self._base.state.get(p, {}).get(key) for p in self.layout.parts])
            found.update({f"{key}/{name}": value for name, value in (whole or {}).items()})
        return found if dist.get_rank() == 0 else None

    def restore(self, moments: Mapping[str, Tensor], steps: int) -> None:
        """Continue from :meth:`moments` of an engine that had made ``steps`` steps, on any ranks and any stage."""
        base, layout = self._base, self.layout
        inline = getattr(base, "aux_optimizer", base) is None  # Muon's own Adam counts in an int
        for part, muon, size in zip(layout.parts, layout.matrices, layout.sizes_of_momenta, strict=True):
            if muon:
                flat = size != part.numel()
                momentum = torch.zeros(size, device=part.device) if flat else torch.zeros_like(part)
                base.state[part] = {_MUON: momentum.detach()}
            else:
                fresh = {key: torch.zeros_like(part).detach() for key in _ADAM}
                done = torch.tensor(float(steps), device=part.device)
                base.state[part] = {"step": steps if inline else done, **fresh}
        for key, pieces in (*((key, self._adam) for key in _ADAM), (_MUON, layout.momenta)):
            whole = {name: moments[f"{key}/{name}"] for name in {piece.name for piece in pieces}}
            scatter(whole, pieces, [base.state[p].get(key, p) for p in layout.parts])

    @property
    def _base(self) -> Any:
        """The optimiser inside ZeRO's."""
        return self._engine.optimizer.optimizer if self._means.zero_stage else self._engine.optimizer

    def _watch_gradients(self) -> None:
        """Under ZeRO 1 and 2 Muon turns gradients into steps within the backward: look before that."""
        if self._means.zero_stage not in (1, 2) or self._means.offload:
            return
        optimizer = self._engine.optimizer
        stock = optimizer.get_flat_partition

        def get_flat_partition(tensors: Any, *args: Any, param_group_idx: int, **kwargs: Any) -> Any:
            def here() -> Iterator[Tensor]:
                for p, gradient in zip(tensors, optimizer.all_grad_tensors[param_group_idx], strict=True):
                    if (piece := p._hp_mapping) is not None:
                        at = piece.lp_fragment_address
                        yield gradient.reshape(-1)[int(at.start) : int(at.start) + int(at.numel)]

            self._add(squares_of(here()) if tensors else None)
            return stock(tensors, *args, param_group_idx=param_group_idx, **kwargs)

        optimizer.get_flat_partition = get_flat_partition

    def _measure_gradients(self) -> None:
        stage, optimizer = self._means.zero_stage, self._engine.optimizer
        if stage == 0:
            self._add(squares_of(p.grad for p in self._parameters if p.grad is not None))
        elif self._means.offload:
            self._add(squares_of(p.grad for p in self.layout.parts if p.grad is not None))
        elif stage == 3:
            self._add(squares_of(g for group in optimizer.averaged_gradients.values() for g in group or ()))

    def _add(self, squares: Tensor | None) -> None:
        if squares is not None:
            self._squares = squares if self._squares is None else self._squares + squares
            self._norm = None


def _parts(batch: Mapping[str, Tensor], count: int) -> Iterator[Mapping[str, Tensor]]:
    if count == 1:
        yield batch
        return
    cut = {key: value.chunk(count) for key, value in batch.items()}
    for i in range(count):
        yield {key: values[i] for key, values in cut.items()}


def _fit_to_this_project(compiled: bool) -> None:
    """Mend what stands in the way of small trainings and of convolutions in DeepSpeed 0.19."""
    import deepspeed
    import deepspeed.ops
    import torch._dynamo
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    if not torch.cuda.is_available():
        # Newton-Schulz and a shared-memory kernel, which training does not use, would be compiled by a C++
        # compiler at the first step of a process: that takes longer than a short training
        torch._dynamo.config.disable = not compiled
        deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD  # a group of its own is a thread more that gloo polls on
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not has_bf16("cpu") and not torch.cuda.is_available():
        original_muon.ns_compute_dtype = lambda ns_method="standard": torch.float32  # it takes bf16 for granted
    # A finaliser that imports modules breaks the import that the garbage collector happens to interrupt
    # (KeyError in importlib): engines are closed by hand instead
    deepspeed.DeepSpeedEngine.__del__ = lambda self: None
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
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
    stock_flags = deepspeed.set_optimizer_flags

    def set_optimizer_flags(config: Any, model: nn.Module) -> None:
        stock_flags(config, model)
        for name, parameter in model.named_parameters():
            if name.endswith(_TABLES):
                setattr(parameter, "use_muon", False)  # noqa: B010  (a name of DeepSpeed's)

    deepspeed.set_optimizer_flags = set_optimizer_flags


def _device_name() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
