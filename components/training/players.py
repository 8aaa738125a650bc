"""All that is trained in one training: an engine for each turn of a step, their averages, and their whole state.

A plain module has one turn. A generative adversarial model has two or more, see
:mod:`components.training.turns`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.contracts.errors import TrainingError
from components.training.checkpoint import MODEL, OPTIMISER, WEIGHTS, Found
from components.training.ema import Ema
from components.training.engine import Engine, Means
from components.training.turns import averaged_turns, turns_of

if TYPE_CHECKING:
    from components.training.loop import Plan

_BUCKET = 1 << 25  # bytes of one broadcast of buffers


class Players:
    """Engines and averages of a module, by turn. Made and used by every rank at once.

    Args:
        module: as ``task.build()`` gives it.
        plan: rates, precision and means.
        share: samples of a step on this rank.
        found: the checkpoint to go on from.
        optimisers: rates of the turns that do not use ``plan.optimiser``.
        whole_batch: the loss compares the samples of a batch, which therefore is not cut for accumulation.

    Raises:
        TrainingError: the module's turns cannot be trained so, or the checkpoint is of another module.
    """

    def __init__(
        self, module: nn.Module, plan: Plan, share: int, found: Found | None,
        optimisers: Mapping[str, Any] | None = None, whole_batch: bool = False,
    ) -> None:  # fmt: skip
        self._root = module
        self.modules = turns_of(module)
        accumulate = 1 if whole_batch else plan.accumulate
        self._check(plan, share, accumulate)
        state = module.state_dict()
        self._buffers = [name for name, _ in module.named_buffers() if name in state]
        self._names = {id(p): name for name, p in module.named_parameters()}
        if found:
            found.put_weights(module)
        if plan.gradient_checkpointing:
            _recompute(module)
        # one rank alone has nothing to cut: the copies that cutting needs would only cost time
        cut = plan.zero_stage if dist.get_world_size() > 1 or plan.offload == "cpu" else 0
        means = Means(cut, plan.offload == "cpu", accumulate, plan.bf16, plan.compile)
        rates = optimisers or {}
        self.engines = {
            turn: Engine(player, rates.get(turn, plan.optimiser), means, share, self._names)
            for turn, player in self.modules.items()
        }
        self.device = next(iter(self.engines.values())).device
        module.to(self.device)  # what no turn owns
        if callable(fit := getattr(module, "fit_to", None)):
            fit(self.device)
        averaged = averaged_turns(module) if plan.ema_decay is not None else ()
        self.averages = {
            turn: Ema(self.engines[turn].layout.parts, plan.ema_decay or 0.0, plan.ema_length) for turn in averaged
        }
        if found:
            self._restore(found)

    def close(self) -> None:
        """Let go of the engines and their memory."""
        for engine in self.engines.values():
            engine.close()

    @property
    def updates(self) -> int:
        """Of the averages."""
        return next((ema.updates for ema in self.averages.values()), 0)

    def step(self, batch: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """Every turn on this rank's share of one batch, at ``factor`` times the rates; then the averages.

        Returns:
            The scalars: of the last turn as they are, and of every turn as ``<turn>_<name>`` where there are several.
        """
        self._share_buffers()
        batch, scalars = self._here(batch), {}
        for turn, engine in self.engines.items():
            found = engine.step(batch, factor)
            scalars.update({f"{turn}_{key}": value for key, value in found.items()} if turn else found)
            if turn in self.averages:
                self.averages[turn].update(engine.layout.parts)
        return scalars | {"loss": found["loss"]}

    def evaluate(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars of the last turn's forward on this rank's share, in evaluation mode and without gradients."""
        engine = list(self.engines.values())[-1]
        with engine.resting():
            return {key: value.detach() for key, value in engine(self._here(batch)).items()}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in the modules while the block runs, where there are averages."""
        kept = {turn: [p.detach().clone() for p in self.engines[turn].layout.parts] for turn in self.averages}
        for turn, ema in self.averages.items():
            self.engines[turn].show(ema.averages)
        try:
            yield
        finally:
            for turn, parts in kept.items():
                self.engines[turn].show(parts)

    def gradient_norm(self) -> Tensor:
        """Of the last step, over all turns, parameters and ranks, before clipping; a number on the device."""
        return torch.stack([engine.gradient_norm() for engine in self.engines.values()]).square().sum().sqrt()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint keeps, by file, in host memory; empty on ranks above 0."""
        weights, averages, moments = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
        for turn, engine in self.engines.items():
            weights.update(engine.gather(engine.layout.parts) or {})
            if turn in self.averages:
                averages.update(engine.gather(self.averages[turn].averages) or {})
            moments.update(engine.moments() or {})
        if dist.get_rank() > 0:
            return {}
        weights.update({name: self._root.get_buffer(name).cpu().clone() for name in self._buffers})
        inference = {MODEL: weights | averages, OPTIMISER: moments}
        return inference | {WEIGHTS: weights} if averages else inference

    def _restore(self, found: Found) -> None:
        moments = found.load(OPTIMISER)
        for engine in self.engines.values():
            engine.restore(moments, found.mark.step)
        if self.averages:
            whole = found.load(MODEL)
            for turn, ema in self.averages.items():
                ema.restore(found.mark.updates, self.engines[turn].scatter(whole))

    def _here(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def _share_buffers(self) -> None:
        """Statistics that layers keep of what they saw (batch norm): rank 0's count, as its checkpoint does."""
        if self._buffers and dist.get_world_size() > 1:
            buffers = [self._root.get_buffer(name) for name in self._buffers]
            world: Any = dist.group.WORLD
            dist._broadcast_coalesced(world, buffers, _BUCKET, 0)  # type: ignore[attr-defined]  # as DDP does it

    def _check(self, plan: Plan, share: int, accumulate: int) -> None:
        if plan.zero_stage == 3 and len(self.modules) > 1:
            raise TrainingError(
                f"A model of {len(self.modules)} players ({', '.join(self.modules)}) with run.zero_stage 3",
                expected="ZeRO stage 0, 1 or 2: a player reads the others' weights, which stage 3 keeps in pieces",
                remedy="train with --set run.zero_stage=2",
            )
        if share % accumulate:
            raise TrainingError(
                f"A worker's {share} samples of a batch cannot be cut into {accumulate} equal parts",
                expected="the section's batch_size to be a multiple of workers times run.accumulate",
                remedy="change run.accumulate, run.workers or the section's batch_size",
            )
        if plan.offload == "cpu" and plan.zero_stage == 0:
            raise TrainingError(
                "run.offload=cpu with run.zero_stage 0",
                expected="ZeRO stage 1, 2 or 3: stage 0 keeps no part of its own that could be moved",
                remedy="train with --set run.zero_stage=1",
            )


def _recompute(module: nn.Module) -> None:
    """Switch gradient checkpointing on in every part that offers it, as diffusers or transformers name it."""
    found = False
    for part in module.modules():
        for name in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
            if any(p.requires_grad for p in part.parameters()) and callable(switch := getattr(part, name, None)):
                switch()
                found = True
                break
        if found:
            return
