"""How much memory a training worker may use, as far as this machine can tell."""

from __future__ import annotations

from pathlib import Path

from components.contracts.recipe import Run
from components.runtime.cluster import address_of

PROCESS = 900_000_000  # bytes of a worker before any tensor: Python with torch, DeepSpeed, diffusers and Ray
_SPARE = 0.93  # of a GPU: the rest goes to the driver's context and to gaps between blocks


def room_of(run: Run) -> tuple[int, str] | None:
    """Bytes that one worker may use, and of what; None where workers run on machines that this one cannot see."""
    if run.gpus_per_worker:
        found = _gpu(run)
        if found is None:
            return None
        size, name = found
        return int(size * _SPARE * min(1.0, run.gpus_per_worker)), name
    if address_of(run) or run.launcher == "here":
        return None
    free = free_memory()
    return max(0, free // run.workers - PROCESS), f"{free / 1e9:.1f} GB free on this machine for {run.workers} workers"


def _gpu(run: Run) -> tuple[float, str] | None:
    if run.gpu_memory_gb:
        return run.gpu_memory_gb * 1e9, f"a GPU of {run.gpu_memory_gb:g} GB (run.gpu_memory_gb)"
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return float(found.total_memory), f"{found.name} of {found.total_memory / 1e9:.0f} GB"


def free_memory() -> int:
    """Bytes that this machine, or the container it is in, can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()) + _cache(group))
    return max(0, free)


def _cache(group: Path) -> int:
    """Of what a container uses, the files that can be dropped."""
    stat = group / "memory.stat"
    lines = stat.read_text().splitlines() if stat.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
