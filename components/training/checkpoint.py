"""Checkpoints of a training: a folder a checkpoint, named by ``latest.json``, which is written last.

``step-00001200/``
    ``engine/``             DeepSpeed's own state, for a bit-true continuation on the same ranks
    ``weights.safetensors`` whole fp32 weights
    ``average.safetensors`` whole moving average, when there is one

A killed writer leaves the former checkpoint whole. On another number of workers, or another ZeRO stage, the
continuation takes weights, average and step, and the optimiser's moments start anew.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist
from torch import nn

from components.runtime.storage import write_bytes
from components.training.ema import Ema
from components.training.engine import Engine

LATEST = "latest.json"
WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"


@dataclass(frozen=True)
class Mark:
    """Where a checkpoint stands."""

    step: int  # steps done
    updates: int  # of the moving average
    world: int
    zero_stage: int
    seconds: float  # training time so far, over all runs


def latest(folder: Path) -> tuple[Mark, Path] | None:
    """The newest finished checkpoint below ``folder``, or None."""
    try:
        found = json.loads((folder / LATEST).read_text())
    except FileNotFoundError:
        return None
    mark = Mark(**found)
    return mark, _folder(folder, mark)


def save(folder: Path, engine: Engine, ema: Ema | None, mark: Mark) -> None:
    """Write a checkpoint below ``folder`` and make it the newest. Every rank must call."""
    from safetensors.torch import save_file

    target = _folder(folder, mark)
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    dist.barrier()
    engine.save(target)
    weights = engine.full(engine.shards())
    average = engine.full(ema.averages) if ema else None
    if first:
        save_file(weights, target / WEIGHTS)
        if average is not None:
            save_file(average, target / AVERAGE)
    dist.barrier()  # every rank's files are there
    if first:
        write_bytes(str(folder / LATEST), json.dumps(asdict(mark)).encode())
        for old in folder.glob("step-*"):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)


def restore_weights(folder: Path, module: nn.Module) -> None:
    """Put the newest checkpoint's weights into a module that no engine holds yet; nothing when there is none."""
    from safetensors.torch import load_file

    if found := latest(folder):
        module.load_state_dict(load_file(found[1] / WEIGHTS), strict=False)


def restore(folder: Path, engine: Engine, ema: Ema | None, world: int, zero_stage: int) -> Mark | None:
    """Bring engine and average to the newest checkpoint; None when there is none. Every rank must call.

    The engine's module must have gone through :func:`restore_weights` before.
    """
    from safetensors.torch import load_file

    if (found := latest(folder)) is None:
        return None
    mark, source = found
    if (mark.world, mark.zero_stage) == (world, zero_stage):
        engine.restore(source)
    if ema:
        ema.restore(mark.updates, engine.part(load_file(source / AVERAGE)))
    return mark


def _folder(folder: Path, mark: Mark) -> Path:
    return folder / f"step-{mark.step:08d}"
