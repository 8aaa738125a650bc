"""Where bf16 is computed in: only on hardware that has instructions for it.

Elsewhere bf16 is emulated, which on a processor with AVX2 alone takes a hundred times as long as fp32. There, fp32
is computed in: at least as exact, and weights are kept in fp32 in any case.
"""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def has_bf16(device_type: str) -> bool:
    """Whether matrix products in bf16 are done by the hardware of "cpu", "cuda", ... of this machine."""
    import torch

    if device_type == "cpu":
        found = torch.cpu.get_capabilities()
        return any(bool(found.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def autocast(device_type: str, wanted: bool = True) -> Any:
    """Context of ``torch.autocast`` to bf16 where it is wanted and the hardware has it, else of plain fp32."""
    import torch

    return torch.autocast(device_type, torch.bfloat16, enabled=wanted and has_bf16(device_type))


def name_of(device_type: str, wanted: bool = True) -> str:
    """What :func:`autocast` computes in: "bf16" or "fp32"."""
    return "bf16" if wanted and has_bf16(device_type) else "fp32"
