"""One rank of the tests of shared memory: ``python -m … WHAT RANK WORLD FOLDER``."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from components.training import shared

SIZES = (5, 0, 1, 1003, 70_001, 12)  # some cross a filling, one crosses several


def compare(memory: shared.SharedMemory) -> str:
    """Everything a few times; a digest of what all ranks should have alike."""
    rank, world, digest = dist.get_rank(), dist.get_world_size(), hashlib.sha256()
    draws = torch.Generator().manual_seed(rank)
    for turn in range(3):
        mine = [torch.randn(size, generator=draws) for size in SIZES]
        theirs = [tensor.clone() for tensor in mine]
        # by turns: everyone wants all, and each tensor is wanted by one rank or by two neighbours
        readers = None if turn == 0 else [tuple(sorted({i % world, (i + turn - 1) % world})) for i in range(len(SIZES))]
        memory.average(mine, readers)
        for i, (found, expected) in enumerate(zip(mine, theirs, strict=True)):
            dist.all_reduce(expected)
            if readers is None or rank in readers[i]:
                torch.testing.assert_close(found, expected / world)
            if readers is None:
                digest.update(found.numpy().tobytes())
            elif len(readers[i]) > 1:  # the same bits where there are several
                here = found if rank == readers[i][0] else torch.empty_like(found)
                dist.broadcast(here, readers[i][0])
                assert rank not in readers[i] or torch.equal(here, found)
        number = torch.randn(1, generator=draws)
        expected = number.clone()
        dist.all_reduce(expected)
        memory.sum(number)
        torch.testing.assert_close(number, expected)
        digest.update(number.numpy().tobytes())
        common = shared.allocate(world * 5000)
        assert common is not None
        common.view(world, -1)[rank] = torch.arange(5000.0) + rank
        memory.meet()
        expected = torch.cat([torch.arange(5000.0) + r for r in range(world)])
        assert torch.equal(common, expected)
    memory.close()
    return f"same {digest.hexdigest()}"


def die(memory: shared.SharedMemory) -> str:
    """Rank 1 ends without a word between two means."""
    tensors: list[Tensor] = [torch.ones(100)]
    memory.average(tensors)
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        memory.average(tensors)
    except RuntimeError as error:
        print(type(error).__name__, error)
        sys.stdout.flush()
        os._exit(3)
    return "nothing happened"


def main(what: str, rank: int, world: int, folder: Path) -> None:
    """Join the group and do it."""
    torch.set_num_threads(1)
    shared._SLOT = 4096
    dist.init_process_group("gloo", init_method=f"file://{folder / what}", rank=rank, world_size=world)
    if what == "apart" and rank == 1:
        shared._machine = lambda: "another"
    memory = shared.SharedMemory.join()
    if memory is None:
        print(None)
    else:
        print({"compare": compare, "die": die}[what](memory))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
