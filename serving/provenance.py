"""What a picture says of its origin: PNG text chunks that name the model and that a machine drew it."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# IPTC's term for a picture made by a trained model, as C2PA and the IPTC photo metadata standard use it
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def encode_png(
    pixels: NDArray[np.uint8], *, model: str, version: str, seed: int, request_id: str, style: str | None = None
) -> bytes:
    """``pixels`` (H, W, 3, 0..255) as a PNG with its origin in tEXt chunks. The prompt is not in it."""
    info = PngInfo()
    for name, value in {
        "Software": "Atelier",
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "model": model,
        "model_version": version,
        "seed": str(seed),
        "request_id": request_id,
        **({"style": style} if style else {}),
    }.items():
        info.add_text(name, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_provenance(png: bytes) -> dict[str, str]:
    """The text chunks of a PNG."""
    with Image.open(io.BytesIO(png)) as image:
        return {k: v for k, v in image.info.items() if isinstance(v, str)}
