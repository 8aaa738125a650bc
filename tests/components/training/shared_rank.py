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
    """Both ways, a few times; a digest of what came out."""
    rank, world, digest = dist.get_rank(), dist.get_world_size(), hashlib.sha256()
    draws = torch.Generator().manual_seed(rank)
    for _ in range(3):
        mine = [torch.randn(size, generator=draws) for size in SIZES]
        theirs = [tensor.clone() for tensor in mine]
        memory.average(mine)
        for tensor in theirs:
            dist.all_reduce(tensor)
        for found, expected in zip(mine, theirs, strict=True):
            torch.testing.assert_close(found, expected / world)
            digest.update(found.numpy().tobytes())
        whole = torch.randn(world * 40_003, generator=draws)
        own = whole.view(world, -1)[rank]  # as DeepSpeed's parts lie
        expected = torch.empty_like(whole)
        dist.all_gather_into_tensor(expected, own.clone())
        memory.all_gather(whole, own)
        assert torch.equal(whole, expected)
        digest.update(whole.numpy().tobytes())
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
