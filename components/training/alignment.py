"""Representation alignment: the denoiser's middle is led to see in the noisy latents what CLIP sees in the picture.

Yu et al. 2024, "Representation Alignment for Generation: Training Diffusion Transformers Is Easier Than You Think",
eq. 8. The head that compares the two is trained along and left out of the finished model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.contracts.errors import TrainingError
from components.models.text_encoder import kind_of, load_clip
from components.training.samples import Buckets, squeezed, to_pixels

_CACHED = 1 << 29  # bytes of views that are worth keeping in memory
_AT_ONCE = 256  # pictures


class Alignment(nn.Module):
    """A small head from the denoiser's middle to CLIP's features, and how unlike they are.

    Args:
        width: channels of the middle. features: width of CLIP's picture tower.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(width, 2 * features), nn.SiLU(),
            nn.Linear(2 * features, 2 * features), nn.SiLU(),
            nn.Linear(2 * features, features),
        )  # fmt: skip

    def forward(self, inner: Tensor, seen: Tensor) -> Tensor:
        """One minus the mean cosine over places of the picture: scalar in 0..2.

        Args:
            inner: the middle, ``[N, width, h, w]``. seen: CLIP's features, ``[N, features, H, W]``. Both are pooled
                to the coarser of the two grids.
        """
        grid = (min(inner.shape[-2], seen.shape[-2]), min(inner.shape[-1], seen.shape[-1]))
        pooled = F.adaptive_avg_pool2d(inner, grid).flatten(2).transpose(1, 2)
        wanted = F.adaptive_avg_pool2d(seen, grid).flatten(2).transpose(1, 2)
        return 1 - F.cosine_similarity(self.head(pooled).float(), wanted.float(), dim=-1).mean()


def features_of(clip: Path) -> int:
    """Width of the picture tower of the CLIP in a folder.

    Raises:
        TrainingError: the text encoder has no picture tower.
    """
    if kind_of(clip) != "clip":
        raise TrainingError(
            f"train.denoiser.align_weight needs the picture tower of a CLIP; the text encoder is a {kind_of(clip)}",
            expected="a CLIP with both towers as text encoder",
            remedy="set train.denoiser.align_weight=0, or choose a CLIP for train.text_encoder.source, or null",
        )
    return int(json.loads((clip / "config.json").read_text(encoding="utf-8"))["vision_config"]["hidden_size"])


class Views:
    """CLIP's features of pictures: those of the last block but one, since only the class token of the last is trained.

    Args:
        clip: folder of the CLIP; pictures are normalised as its ``preprocessor_config.json`` says, if it has one.
        pictures: all samples. device: where features are computed.
    """

    def __init__(self, clip: Path, pictures: Buckets[npt.NDArray[np.uint8]], device: torch.device) -> None:
        self._tower: Any = load_clip(clip).vision_model.to(device).requires_grad_(False)
        config = self._tower.config
        self._side = int(config.image_size)
        self._grid = self._side // int(config.patch_size)
        self._mean, self._std = (t.to(device) for t in _normalisation(clip))
        self._pictures, self._device = pictures, device
        size = len(pictures) * self._grid**2 * int(config.hidden_size) * 2
        self._kept = torch.cat([self._look(part).half() for part in self._parts()]) if size <= _CACHED else None

    def take(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Features fp32 ``[len(indices), features, H, W]`` of samples of one bucket."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(indices)].float()
        return self._look(self._pictures.take(indices))

    def _parts(self) -> list[npt.NDArray[np.uint8]]:
        return [b[at : at + _AT_ONCE] for b in self._pictures.blocks for at in range(0, len(b), _AT_ONCE)]

    def _look(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        pixels = squeezed(to_pixels(pictures), self._side).to(self._device)
        with torch.inference_mode():
            found: Tensor = self._tower(
                pixel_values=((pixels + 1) / 2 - self._mean) / self._std, output_hidden_states=True
            ).hidden_states[-2][:, 1:]
            return found.transpose(1, 2).reshape(len(found), -1, self._grid, self._grid).cpu().clone()


def _normalisation(clip: Path) -> tuple[Tensor, Tensor]:
    """Mean and deviation by channel, ``[3, 1, 1]``, of pictures in 0..1; a CLIP trained here reads -1..1."""
    file = clip / "preprocessor_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    mean, std = (torch.tensor(settings.get(f"image_{name}", [0.5] * 3)).view(3, 1, 1) for name in ("mean", "std"))
    return mean, std
