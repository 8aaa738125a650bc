"""Memory that the ranks of one machine share, and means that they make in it, where gloo takes loopback."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

_SLOT = 1 << 20  # elements of fp32: large enough for few meetings, small enough to stay in the cache
_BOOT = Path("/proc/sys/kernel/random/boot_id")

Readers = tuple[int, ...]  # ranks, in order
Door = tuple[int, int]  # file descriptors: of a pipe that this rank reads, and of one that it writes to
Cut = tuple[int, int, int]  # which tensor, and from where to where of its elements


class SharedMemory:
    """Memory that every rank of the default group reads and writes; it ends with the processes.

    Every rank calls the same methods in the same order. They meet through pipes, which a process that dies closes:
    then the others raise.
    """

    def __init__(self, slots: Tensor, doors: dict[int, Door]) -> None:
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._turns = slots.view(2, self._world, -1)  # a slot a rank; twice, to be filled in turns
        self._turn, self._doors = 0, doors

    @classmethod
    def join(cls) -> SharedMemory | None:
        """The group's memory, or None where its ranks do not see each other's processes. Every rank must call."""
        slots = allocate(2 * dist.get_world_size() * _SLOT)
        doors = _open_doors() if slots is not None else None
        return None if slots is None or doors is None else cls(slots, doors)

    def close(self) -> None:
        """Let go of the pipes; of the memory, when nothing uses it any more."""
        for pair in self._doors.values():
            for end in pair:
                os.close(end)
        self._doors = {}

    def meet(self) -> None:
        """Wait until every rank is here; what they wrote before can be read after.

        Raises:
            RuntimeError: a rank ended, or did not come within the time that a group has for anything.
        """
        for rank, (_, theirs) in self._doors.items():
            try:
                os.write(theirs, b"!")
            except BrokenPipeError:
                raise RuntimeError(f"Rank {rank} of the training ended") from None
        for rank, (mine, _) in self._doors.items():
            if not select.select([mine], [], [], default_pg_timeout.total_seconds())[0]:
                raise RuntimeError(f"Rank {rank} of the training was not heard of for {default_pg_timeout}")
            if not os.read(mine, 1):
                raise RuntimeError(f"Rank {rank} of the training ended")

    def average(self, tensors: Sequence[Tensor], readers: Sequence[Readers] | None = None) -> None:
        """The mean over the ranks, in place, of contiguous fp32 tensors in host memory.

        Args:
            readers: of each tensor, the ranks that want the mean, all with the same bits; what the tensor holds
                afterwards on other ranks is not defined. None: every rank wants all.
        """
        flat, everyone = [t.view(-1) for t in tensors], tuple(range(self._world))
        wanted = tuple(readers) if readers is not None else (everyone,) * len(flat)
        for filling in _cuts(tuple(map(len, flat)), wanted, self._world, _SLOT):
            pieces = [[flat[i][start:stop] for i, start, stop in share] for share in filling]
            sizes = [[stop - start for _, start, stop in share] for share in filling]
            ends = list(accumulate(map(sum, sizes), initial=0))
            slots = self._next()
            parts = [slots[:, ends[r] : ends[r + 1]] for r in everyone]  # [ranks, elements of a share]
            for r in everyone:
                if r != self._rank and pieces[r]:
                    torch.cat(pieces[r], out=parts[r][self._rank])
            self.meet()
            mine, part, size = pieces[self._rank], parts[self._rank], sizes[self._rank]
            if mine:
                for r in everyone:
                    if r != self._rank:
                        torch._foreach_add_(mine, torch.split(part[r], size))
                torch._foreach_div_(mine, self._world)
            several = [[k for k, (i, _, _) in enumerate(share) if len(wanted[i]) > 1] for share in filling]
            if not any(several):
                continue
            if asked := several[self._rank]:
                own = torch.split(part[self._rank], size)
                torch._foreach_copy_([own[k] for k in asked], [mine[k] for k in asked])
            self.meet()
            for r in everyone:
                asked = [k for k in several[r] if r != self._rank and self._rank in wanted[filling[r][k][0]]]
                if asked:
                    means = torch.split(parts[r][r], sizes[r])
                    torch._foreach_copy_([pieces[r][k] for k in asked], [means[k] for k in asked])

    def sum(self, tensor: Tensor) -> None:
        """Over the ranks, in place."""
        self.average([tensor])
        tensor.mul_(self._world)

    def _next(self) -> Tensor:
        """The slots that nobody reads any more: all have met since they were read."""
        self._turn = 1 - self._turn
        return self._turns[self._turn]


@lru_cache(maxsize=64)
def _cuts(sizes: tuple[int, ...], readers: tuple[Readers, ...], world: int, room: int) -> list[list[list[Cut]]]:
    """Tensors of these sizes cut into a share for each rank, which makes its means, and the shares into fillings.

    A tensor is shared out among its readers. Those of several readers come first, so that few fillings have any.

    Returns:
        By filling and rank, the cuts of its share. No share of a filling has more than ``room // world`` elements.
    """
    shares: list[list[Cut]] = [[] for _ in range(world)]
    for group in sorted(set(readers), key=lambda ranks: (-len(ranks), ranks)):
        members = [i for i, ranks in enumerate(readers) if ranks == group and sizes[i]]
        share = -(-sum(sizes[i] for i in members) // len(group))
        lengths = [share] * len(group)
        for rank, cuts in zip(group, _split([(i, 0, sizes[i]) for i in members], lengths), strict=False):
            shares[rank] += cuts
    limit = max(room // world, 1)
    count = -(-max((sum(b - a for _, a, b in share) for share in shares), default=0) // limit)
    columns = [_split(share, [limit] * count) for share in shares]
    return [[column[k] if k < len(column) else [] for column in columns] for k in range(count)]


def _split(cuts: Sequence[Cut], lengths: Sequence[int]) -> list[list[Cut]]:
    """Cuts in a row, cut anew into rows of these lengths, of which the last ones may be shorter or empty."""
    rows, left = [], list(reversed(cuts))
    for length in lengths:
        row: list[Cut] = []
        while left and length:
            index, start, stop = left.pop()
            end = min(stop, start + length)
            row.append((index, start, end))
            length -= end - start
            if end < stop:
                left.append((index, end, stop))
        rows.append(row)
    return rows


def allocate(count: int) -> Tensor | None:
    """Zeros ``[count]`` of fp32 that every rank maps, or None where one cannot. Every rank must call.

    Pages are made where they are touched. The memory has no name that could be left behind.
    """
    lends = dist.get_rank() == 0 and hasattr(os, "memfd_create")
    lent = os.memfd_create("atelier-ranks") if lends else -1
    try:
        if lends:
            os.truncate(lent, 4 * count)
        said, found = _say((_machine(), f"/proc/{os.getpid()}/fd/{lent}")), None
        if _one_machine(said):
            with contextlib.suppress(OSError), open(said[0][1], "r+b") as file:  # another user's process: gloo does it
                found = torch.frombuffer(mmap.mmap(file.fileno(), 4 * count), dtype=torch.float32)
        return found if all(_say(found is not None)) else None
    finally:
        if lends:
            os.close(lent)


def _open_doors() -> dict[int, Door] | None:
    """A door to every other rank, or None where one cannot be opened. Every rank must call."""
    rank, opened, agreed = dist.get_rank(), dict[int, Door](), False
    inbox = {r: os.pipe() for r in range(dist.get_world_size()) if r != rank}
    try:
        said = _say((_machine(), {r: f"/proc/{os.getpid()}/fd/{end}" for r, (_, end) in inbox.items()}))
        if _one_machine(said):
            with contextlib.suppress(OSError):
                for r, (mine, _) in inbox.items():
                    opened[r] = mine, os.open(said[r][1][rank], os.O_WRONLY)
        agreed = all(_say(len(opened) == len(inbox)))
        return opened if agreed else None
    finally:
        for mine, end in inbox.values():
            os.close(end)  # so that a pipe ends with the rank that writes to it
            if not agreed:
                os.close(mine)
        if not agreed:
            for _, theirs in opened.values():
                os.close(theirs)


def _say(value: Any) -> list[Any]:
    """What every rank says, in order."""
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, value)
    return said


def _one_machine(said: Sequence[tuple[str | None, Any]]) -> bool:
    return said[0][0] is not None and len({machine for machine, _ in said}) == 1


def _machine() -> str | None:
    """Of this process: equal for two that see each other below /proc. None where the system does not say."""
    try:
        return f"{_BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def bytes_of(elements: int, world: int) -> int:
    """What slots take of memory, in each of ``world`` ranks that average so many elements."""
    return 2 * world * 4 * min(elements, _SLOT)
