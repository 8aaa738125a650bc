"""Sample sheets: what the model draws at a few moments of its training, as one PNG each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from components.runtime.storage import write_bytes

FOLDER = "sheets"
_CELL = 128  # pixels a side that small pictures are enlarged to
_GAP = 4


def sheet_of(pictures: npt.NDArray[np.uint8], columns: int = 8) -> npt.NDArray[np.uint8]:
    """Pictures ``[N, H, W, 3]`` side by side in rows of ``columns``, small ones enlarged by whole factors."""
    factor = max(1, _CELL // pictures.shape[1])
    large = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    count, high, wide, _ = large.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (high + _GAP) + _GAP, columns * (wide + _GAP) + _GAP, 3), 246, np.uint8)
    for number, picture in enumerate(large):
        top = _GAP + number // columns * (high + _GAP)
        left = _GAP + number % columns * (wide + _GAP)
        sheet[top : top + high, left : left + wide] = picture
    return sheet


def write_sheet(folder: Path, images: int, pictures: npt.NDArray[np.uint8], prompts: Sequence[str]) -> Path:
    """``sheets/images-000012800.png`` below ``folder``, and the prompts beside it, one a line in reading order."""
    import io

    from PIL import Image

    (folder / FOLDER).mkdir(exist_ok=True)
    out = io.BytesIO()
    Image.fromarray(sheet_of(pictures)).save(out, format="PNG")
    path = folder / FOLDER / f"images-{images:09d}.png"
    write_bytes(str(folder / FOLDER / "prompts.txt"), "".join(f"{prompt}\n" for prompt in prompts).encode())
    write_bytes(str(path), out.getvalue())
    return path
