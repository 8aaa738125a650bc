"""One rank of two: the DAMSM loss of its half of a batch, and the gradients of its half, for test_damsm.

As a script: ``python -m tests.components.training.damsm_rank RANK FOLDER``; features and ids are read from
``FOLDER/given.pt``, what was found is written to ``FOLDER/rank{RANK}.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from components.training.damsm import Features, damsm_over_ranks

FLOATS = ("regions", "images", "words", "sentences")


def main(rank: int, folder: Path) -> None:
    """Join the group, compute, write."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    given = torch.load(folder / "given.pt", weights_only=True)
    half = len(given["ids"]) // 2
    mine = {name: value[rank * half : (rank + 1) * half] for name, value in given.items()}
    for name in FLOATS:
        mine[name].requires_grad_(True)
    ids = mine.pop("ids")
    losses = damsm_over_ranks(Features(**mine), ids)
    gradients = torch.autograd.grad(sum(losses, torch.zeros(())), [mine[name] for name in FLOATS])
    torch.save({"losses": torch.stack(losses).detach(), "gradients": list(gradients)}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
