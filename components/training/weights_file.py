"""Writing the safetensors format piece by piece: no second copy of the tensors in memory, and its checksum with it.

https://huggingface.co/docs/safetensors: eight bytes with the header's length, the header in JSON (for each tensor
type, shape and place), then the tensors' bytes, little-endian, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_CHUNK = 1 << 24  # bytes


def safetensors_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file that holds ``tensors``, which lie in host memory."""
    header, place = dict[str, object](), 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, place + size],
        }  # fmt: skip
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        raw = memoryview(cast(Any, tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
        for start in range(0, len(raw), _CHUNK):
            yield raw[start : start + _CHUNK]
