"""Training without Ray: in this process, or on the ranks that torchrun started.

Rank 0 runs the stage and tells the others what to train; they do nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from components.training.engine import joined_group
from components.training.loop import train


def train_here(task: Any, plan: Any, folder: Path) -> None:
    """Train on every rank of the group; rank 0 calls it, the others wait in :func:`follow`."""
    _, world = joined_group()
    if world > 1:
        dist.broadcast_object_list([(task, plan, folder)], 0)
    train(task, plan, folder)


def follow() -> None:
    """On a rank above 0: train whatever rank 0 trains, until it dismisses this rank."""
    while True:
        order: list[Any] = [None]
        dist.broadcast_object_list(order, 0)
        if order[0] is None:
            return
        train(*order[0])


def dismiss() -> None:
    """On rank 0: there is no more to train. Not to be called after a training failed: the others are still in it."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list([None], 0)
