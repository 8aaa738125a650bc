"""Where the numbers of a training lie on this rank, under every ZeRO stage, and their way to whole tensors by name.

DeepSpeed flattens parameters into groups and cuts those into equal parts, one a rank; what it cuts and where depends
on stage, offload, optimiser and number of ranks. A :class:`Layout` says it in one form, so that state can be written
by name on one set of ranks and read on another. Only DeepSpeed's objects are read here, its package is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK = 1 << 24  # elements sent at a time: 64 MB of fp32


@dataclass(frozen=True)
class Piece:
    """``size`` elements of the flattened parameter ``name`` from ``offset`` on lie in ``part`` from ``start`` on."""

    name: str
    part: int
    start: int
    offset: int
    size: int


@dataclass
class Layout:
    """What this rank keeps.

    ``parts`` are the fp32 master weights here: the parameters themselves (stage 0), or flat parts of groups.
    ``pieces`` cover exactly what lies here; ``matrices`` says which parts Muon trains. ``momenta`` are the pieces of
    Muon's momentum, which DeepSpeed keeps whole for every matrix that reaches into a rank's part (stages 1 and 2).
    """

    parts: list[Tensor]
    pieces: list[Piece]
    matrices: list[bool]
    momenta: list[Piece]
    sizes_of_momenta: list[int]  # elements, by part; 0 where Muon has nothing to do


def layout_of(engine: Any, named: Sequence[tuple[str, Any]], stage: int, offload: bool) -> Layout:
    """The layout of a DeepSpeed engine.

    Args:
        named: the trained parameters with their names, in the engine's order.
        stage: of ZeRO.
        offload: the optimiser's state is in host memory.
    """
    if stage == 0:
        return _replicated(named)
    if stage < 3:
        return _partitioned(engine.optimizer, named, offload)
    return _sharded(engine.optimizer, named)


def _replicated(named: Sequence[tuple[str, Any]]) -> Layout:
    parts = [p for _, p in named]
    pieces = [Piece(name, i, 0, 0, p.numel()) for i, (name, p) in enumerate(named)]
    muon = [bool(getattr(p, "use_muon", False)) for p in parts]
    momenta = [piece for piece in pieces if muon[piece.part]]
    return Layout(parts, pieces, muon, momenta, [p.numel() * m for p, m in zip(parts, muon, strict=True)])


def _partitioned(optimizer: Any, named: Sequence[tuple[str, Any]], offload: bool) -> Layout:
    names = {id(p): name for name, p in named}
    parts = list(optimizer.single_partition_of_fp32_groups)
    muon = [bool(group.get("use_muon", False)) for group in optimizer.optimizer.param_groups]
    pieces, momenta, sizes = [], [], []
    for part, group in enumerate(optimizer.bit16_groups):
        for p in group:
            if (here := p._hp_mapping) is not None:
                hp, lp = here.hp_fragment_address, here.lp_fragment_address
                pieces.append(Piece(names[id(p)], part, int(hp.start), int(lp.start), int(hp.numel)))
        if not muon[part]:
            sizes.append(0)
        elif offload:
            momenta += [piece for piece in pieces if piece.part == part]
            sizes.append(parts[part].numel())
        else:
            start = 0
            for p in optimizer.params_in_partition[part]:
                momenta.append(Piece(names[id(p)], part, start, 0, p.numel()))
                start += p.numel()
            sizes.append(start)
    return Layout(parts, pieces, muon, momenta, sizes)


def _sharded(optimizer: Any, named: Sequence[tuple[str, Any]]) -> Layout:
    rank = dist.get_rank()
    parts = list(optimizer.fp32_partitioned_groups_flat)
    muon = list(optimizer.sub_groups_using_muon) if optimizer.use_muon else [False] * len(parts)
    pieces = []
    for name, p in named:
        part, start, room = optimizer.grad_position[optimizer.get_param_id(p)]
        size = min(room, p.ds_numel - rank * room)
        if size > 0:
            pieces.append(Piece(name, part, start, rank * room, size))
    momenta = [piece for piece in pieces if muon[piece.part]]
    return Layout(parts, pieces, muon, momenta, [p.numel() * m for p, m in zip(parts, muon, strict=True)])


class Gatherer:
    """Brings tensors that lie as ``pieces`` to rank 0, whole and by name. Made by every rank at once."""

    def __init__(self, pieces: Sequence[Piece], shapes: Mapping[str, torch.Size], device: torch.device) -> None:
        self._pieces, self._shapes, self._device = list(pieces), shapes, device
        self._tables = [self._pieces]
        if dist.get_world_size() > 1:
            tables: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(tables, self._pieces)
            self._tables = tables

    def gather(self, tensors: Sequence[Tensor | None]) -> dict[str, Tensor] | None:
        """Whole fp32 tensors in host memory, sharing none with ``tensors``; None on ranks above 0."""
        mine = [_at(tensors, piece) for piece in self._pieces]
        if self._known_to_first():
            return self._placed([mine]) if dist.get_rank() == 0 else None
        flat = torch.cat(mine) if mine else torch.empty(0)
        lengths = [sum(piece.size for piece in table) for table in self._tables]
        first = dist.get_rank() == 0
        received = [torch.empty(length) for length in lengths] if first else []
        for start in range(0, max(lengths), _CHUNK):
            size = min(_CHUNK, max(lengths) - start)
            sent = torch.zeros(size, device=self._device)
            here = flat[start : start + size]
            sent[: len(here)] = here
            chunks = [torch.empty_like(sent) for _ in lengths] if first else None
            dist.gather(sent, chunks, dst=0)
            for whole, chunk in zip(received, chunks or [], strict=True):
                room = whole[start : start + size]
                room.copy_(chunk[: len(room)])
        if not first:
            return None
        cut = zip(received, self._tables, strict=True)
        return self._placed([list(torch.split(whole, [p.size for p in table])) for whole, table in cut])

    def _known_to_first(self) -> bool:
        """Rank 0 has everything: nobody need send."""
        have = sum(piece.size for piece in self._tables[0])
        return have == sum(self._shapes[name].numel() for name in {p.name for table in self._tables for p in table})

    def _placed(self, values: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        names = {piece.name for table in self._tables for piece in table}
        whole = {name: torch.zeros(shape) for name, shape in self._shapes.items() if name in names}
        for table, tensors in zip(self._tables, values, strict=False):
            for piece, value in zip(table, tensors, strict=True):
                whole[piece.name].view(-1)[piece.offset : piece.offset + piece.size] = value.cpu()
        return whole


def scatter(whole: Mapping[str, Tensor], pieces: Sequence[Piece], tensors: Sequence[Tensor]) -> None:
    """Put what lies here of whole tensors into ``tensors``: the inverse of :meth:`Gatherer.gather`."""
    for piece in pieces:
        value, target = whole[piece.name], tensors[piece.part]
        if target.numel() == piece.size == value.numel():
            target.copy_(value.reshape(target.shape))  # also where the target is not contiguous
        else:
            target[piece.start : piece.start + piece.size] = value.reshape(-1)[piece.offset : piece.offset + piece.size]


def _at(tensors: Sequence[Tensor | None], piece: Piece) -> Tensor:
    tensor = tensors[piece.part]
    assert tensor is not None, f"no state for {piece.name}"
    return tensor.detach().reshape(-1)[piece.start : piece.start + piece.size]


def squares_of(tensors: Iterator[Tensor] | Sequence[Tensor]) -> Tensor | None:
    """Sum of the squares of all elements, without a wait for the device; None of nothing."""
    norms = torch._foreach_norm(list(tensors))
    return torch.stack([n.float() for n in norms]).square().sum() if norms else None
