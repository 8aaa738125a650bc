"""What a device can do at most, to say how much of it a training uses."""

from __future__ import annotations

import time

import torch

from components.runtime.precision import name_of

DENSE_BF16 = {  # TFLOP/s of matrix products without sparsity, as the makers state them
    "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "A100": 312.0, "B200": 2250.0, "L40S": 362.0,
    "L4": 121.0, "A10G": 70.0, "A40": 150.0, "RTX 4090": 165.0, "MI300X": 1307.0,
}  # fmt: skip


def peak_flops(device: torch.device, bf16: bool, seconds: float = 0.25) -> tuple[float, str]:
    """Floating point operations a second of ``device`` in matrix products, and where the figure is from.

    In bf16 where that is wanted and the hardware has it, else in fp32.

    A GPU known by name has its maker's figure for bf16, by which published utilisations are reckoned; everything
    else is measured for ``seconds``, on the threads that this process may use.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((value for key, value in DENSE_BF16.items() if key in name), None)
    kind = name_of(device.type, bf16)  # what autocast computes in here
    if known and kind == "bf16":
        return known * 1e12, f"{name}, bf16, stated"
    rate = _measured(device, torch.bfloat16 if kind == "bf16" else torch.float32, seconds)
    return rate, f"{name or 'CPU'}, {kind}, measured"


def _measured(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """The best rate of several products, since other work on the machine only ever slows one."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    _wait(device)
    best, ends = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ends or best == float("inf"):
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return float(2 * side**3 / best)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
