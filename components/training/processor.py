"""What lets a training on processor cores run at their pace: memory that is kept, and one team of threads."""

from __future__ import annotations

import ctypes
import sys

import torch

_KEPT = {  # name in the environment: number in glibc's malloc.h, value
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_ARENA_MAX": (-8, 1),
}
#: The same for a process that is yet to be started, threads of which may allocate before :func:`keep_freed_memory`.
KEEP_FREED_MEMORY = {name: str(value) for name, (_, value) in _KEPT.items()}


def keep_freed_memory() -> None:
    """Have glibc keep what is freed instead of giving it back to the system; see mallopt(3).

    A step frees its activations and gradients, and the next one asks for as much again. Pages that were given back are
    made anew, and zeroed, at the first touch of each: 30,000 of them in a step of 32 pictures, a tenth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:  # glibc's; other libraries have none
        for number, value in _KEPT.values():
            mallopt(number, value)


def compute_alone() -> None:
    """To be called on a thread beside the one that trains: what it computes, it computes on one thread.

    GNU OpenMP makes a team of threads for every thread that asks for one, and two teams on the same cores wait for each
    other in turns: that took a fifth of the pace of a step on two cores. The thread that trains keeps its own team.
    """
    torch.set_num_threads(1)
