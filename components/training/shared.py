"""How ranks of one machine exchange gradients and weights: by memory that they share, where gloo takes loopback."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SLOT = 1 << 21  # elements of fp32: large enough for few meetings, small enough to stay in the last cache
_BOOT = Path("/proc/sys/kernel/random/boot_id")

Cut = tuple[int, int, int]  # which tensor, and from where to where of its elements


class SharedMemory:
    """Slots of fp32 that every rank of the default group reads and writes; they end with the processes.

    Every rank calls the same methods in the same order. They meet through the group, so that a rank that died raises in
    the others, as it does without this.

    Args:
        path: of an open file of some process that all of them can map.
    """

    def __init__(self, path: str) -> None:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        count = 2 * self._world * _SLOT  # a slot a rank; twice, to be filled in turns
        with open(path, "r+b") as file:
            file.truncate(4 * count)  # pages are made where they are touched
            memory = mmap.mmap(file.fileno(), 4 * count)
        self._turns = torch.frombuffer(memory, dtype=torch.float32).view(2, self._world, _SLOT)
        self._turn, self._here = 0, torch.zeros(1)

    @classmethod
    def join(cls) -> SharedMemory | None:
        """The group's memory, or None where its ranks do not see each other's processes. Every rank must call."""
        lends = dist.get_rank() == 0 and hasattr(os, "memfd_create")
        lent, found = os.memfd_create("atelier-ranks") if lends else -1, None
        try:
            told: list[Any] = [(_machine() if lends else None, f"/proc/{os.getpid()}/fd/{lent}")]
            dist.broadcast_object_list(told, 0)
            machine, path = told[0]
            if machine is not None and machine == _machine():
                try:
                    found = cls(path)
                except OSError:  # another user's process: gloo does it all
                    found = None
            reached = torch.tensor(0 if found is None else 1)
            dist.all_reduce(reached, dist.ReduceOp.MIN)
            return found if reached else None
        finally:
            if lent >= 0:
                os.close(lent)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """The mean over the ranks, in place, of contiguous fp32 tensors in host memory; the same bits on every rank."""
        flat = [t.view(-1) for t in tensors]
        others = [r for r in range(self._world) if r != self._rank]
        for shares in _cuts(tuple(len(f) for f in flat), self._world, _SLOT):
            pieces = [[flat[i][start:stop] for i, start, stop in share] for share in shares]
            sizes = [[len(piece) for piece in share] for share in pieces]
            ends = list(accumulate(map(sum, sizes), initial=0))
            slots = self._next()
            parts = [slots[:, ends[r] : ends[r + 1]] for r in range(self._world)]  # [ranks, elements of a share]
            for part, share in zip(parts, pieces, strict=True):
                if share:
                    torch.cat(share, out=part[self._rank])
            self._meet()
            mine = parts[self._rank]
            for r in others:
                mine[self._rank].add_(mine[r])
            mine[self._rank].div_(self._world)
            self._meet()
            for r, (part, share) in enumerate(zip(parts, pieces, strict=True)):
                if share:
                    torch._foreach_copy_(share, torch.split(part[r], sizes[r]))

    def all_gather(self, whole: Tensor, mine: Tensor) -> None:
        """Put every rank's ``mine`` ``[n]`` into ``whole`` ``[ranks * n]``, of which ``mine`` may be a view."""
        rows, own = whole.view(self._world, -1), mine.view(-1)
        inside = rows[self._rank].data_ptr() == own.data_ptr()
        for start in range(0, len(own), _SLOT):
            slots, part = self._next(), slice(start, min(start + _SLOT, len(own)))
            size = part.stop - part.start
            slots[self._rank, :size].copy_(own[part])
            self._meet()
            for r in range(self._world):
                if r != self._rank or not inside:
                    rows[r, part].copy_(slots[r, :size])

    def _next(self) -> Tensor:
        """The slots that nobody reads any more: all have met since they were read."""
        self._turn = 1 - self._turn
        return self._turns[self._turn]

    def _meet(self) -> None:
        dist.all_reduce(self._here)  # a barrier, of gloo also where there is NCCL


@lru_cache(maxsize=64)
def _cuts(sizes: tuple[int, ...], world: int, room: int) -> list[list[list[Cut]]]:
    """Tensors of these sizes in a row, cut into fillings of ``room`` elements, and those into a share for each rank.

    Returns:
        By filling and rank, the cuts of its share in order. Shares of a filling are equal, up to the last ones.
    """
    ends, index, fillings = list(accumulate(sizes)), 0, []
    for base in range(0, ends[-1] if ends else 0, room):
        size = min(room, ends[-1] - base)
        share = -(-size // world)
        filling = []
        for r in range(world):
            at, stop, cuts = base + min(r * share, size), base + min((r + 1) * share, size), []
            while at < stop:
                while ends[index] <= at:
                    index += 1
                first, last = ends[index] - sizes[index], min(stop, ends[index])
                cuts.append((index, at - first, last - first))
                at = last
            filling.append(cuts)
        fillings.append(filling)
    return fillings


def bytes_of(elements: int, world: int) -> int:
    """What slots take of memory, in each of ``world`` ranks that average so many elements."""
    return 2 * world * 4 * min(elements, _SLOT)


def attach(engine: Any, backend: Any) -> None:
    """Have a DeepSpeed engine average gradients and gather weights without a detour. Every rank must call.

    A rank alone has nothing to average: DeepSpeed would flatten all gradients, send them nowhere and copy them back.
    Several ranks on the processor cores of one machine go through shared memory.

    Args:
        engine: of ZeRO stage 0, 1 or 2; stage 3 sends while it computes, which is left to gloo.
        backend: DeepSpeed's communication, ``deepspeed.comm.comm.cdb``.
    """
    owner = engine.optimizer if hasattr(engine.optimizer, "allreduce_no_retain") else engine
    if dist.get_world_size() == 1:
        if owner is engine:
            engine.allreduce_no_retain = lambda *_, **__: None
        return
    memory = SharedMemory.join() if engine.device.type == "cpu" else None
    if memory is None:
        return
    detach(backend)
    stock_average, stock_gather = owner.allreduce_no_retain, backend.all_gather_into_tensor

    def plain(*tensors: Tensor) -> bool:
        return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)

    def allreduce_no_retain(bucket: Sequence[Tensor], *args: Any, **kwargs: Any) -> None:
        whole = kwargs.get("rank") is None and kwargs.get("output_bucket") is None and kwargs.get("divide", True)
        if whole and plain(*bucket):
            memory.average(bucket)
        else:
            stock_average(bucket, *args, **kwargs)

    def all_gather_into_tensor(
        output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        everyone = dist.get_world_size(group) == dist.get_world_size()
        if async_op or not everyone or not plain(output_tensor, input_tensor):
            return stock_gather(output_tensor, input_tensor, group, async_op)
        return memory.all_gather(output_tensor, input_tensor)

    owner.allreduce_no_retain, backend.all_gather_into_tensor = allreduce_no_retain, all_gather_into_tensor


def detach(backend: Any) -> None:
    """Leave gathers to DeepSpeed's own communication again, and let go of the memory."""
    vars(backend).pop("all_gather_into_tensor", None)


def _machine() -> str | None:
    """Of this process: equal for two that see each other below /proc. None where the system does not say."""
    try:
        return f"{_BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
