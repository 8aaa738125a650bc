"""Pictures of tests that have large shapes, gradients and texture, as photographs have."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def scene(seed: int, side: int = 256, width: int | None = None) -> NDArray[np.uint8]:
    """A picture with large shapes, gradients and texture, as photographs have."""
    rng = np.random.default_rng(seed)
    width = width or side
    coarse = rng.integers(20, 236, (6, 6, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (width, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(8):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, side)))
        colour = tuple(float(v) for v in rng.integers(0, 256, 3))
        cv2.circle(picture, centre, int(rng.integers(side // 20, side // 4)), colour, -1)
    picture += cv2.GaussianBlur(rng.normal(0, 40, picture.shape).astype(np.float32), (0, 0), 1.5)
    return np.clip(picture, 0, 255).astype(np.uint8)
