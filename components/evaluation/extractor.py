"""Feature extractors: pictures and texts to numbers, behind one small interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from components.contracts.errors import ArtifactError

if TYPE_CHECKING:
    import torch

Pictures = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]

_BATCH = 128


class Extractor(Protocol):
    """Pictures to features. ``digest`` changes whenever the same picture could get other features."""

    digest: str

    def features(self, pictures: Pictures) -> Rows:
        """Features [N, d] of pictures uint8 RGB [N, H, W, 3], for distances between distributions."""
        ...


class TextImageExtractor(Extractor, Protocol):
    """An extractor that also places pictures and texts in one space."""

    def look(self, pictures: Pictures) -> tuple[Rows, Rows]:
        """Features [N, d], and embeddings [N, e] of unit length, of the pictures."""
        ...

    def read(self, texts: Sequence[str]) -> Rows:
        """Embeddings [N, e] of unit length of the texts."""
        ...


@dataclass
class ClipExtractor:
    """A transformers ``CLIPModel`` with its tokenizer.

    Features are the pooled output of the picture tower; embeddings are the two projections.
    """

    model: Any
    tokenizer: Any
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path, digest: str) -> ClipExtractor:
        """From a folder with ``config.json``, ``model.safetensors`` and ``tokenizer/``; CPU, float32, frozen.

        Raises:
            ArtifactError: the folder does not hold such a model.
        """
        import json

        from transformers import CLIPModel, PreTrainedTokenizerFast
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            model = CLIPModel.from_pretrained(folder, use_safetensors=True).float().eval().requires_grad_(False)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"The judge's extractor cannot be loaded from {folder}: {str(error).splitlines()[0]}",
                expected="config.json, model.safetensors and tokenizer/ of a CLIP model",
                remedy="delete the judge artifact and run the same command again",
            ) from error
        file = folder / "preprocessor_config.json"
        settings = json.loads(file.read_text()) if file.exists() else {}
        mean, std = (tuple(settings.get(f"image_{what}", (0.5, 0.5, 0.5))) for what in ("mean", "std"))
        return cls(model, tokenizer, digest, mean, std)

    @property
    def side(self) -> int:
        """Side of the square pictures that the picture tower reads, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def features(self, pictures: Pictures) -> Rows:
        """See :class:`Extractor`."""
        return self.look(pictures)[0]

    def look(self, pictures: Pictures) -> tuple[Rows, Rows]:
        """See :class:`TextImageExtractor`."""
        import torch

        features, embeddings = [], []
        with torch.inference_mode():
            for start in range(0, len(pictures), _BATCH):
                pixels = self._pixels(pictures[start : start + _BATCH])
                pooled = self.model.vision_model(pixel_values=pixels).pooler_output
                features.append(pooled.numpy())
                embeddings.append(_normed(self.model.visual_projection(pooled)))
        return np.concatenate(features), np.concatenate(embeddings)

    def read(self, texts: Sequence[str]) -> Rows:
        """See :class:`TextImageExtractor`."""
        import torch

        length = int(self.model.config.text_config.max_position_embeddings)
        embeddings = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                tokens = self.tokenizer(
                    list(texts[start : start + _BATCH]),
                    padding="max_length", truncation=True, max_length=length, return_tensors="pt",
                )  # fmt: skip
                pooled = self.model.text_model(input_ids=tokens["input_ids"]).pooler_output
                embeddings.append(_normed(self.model.text_projection(pooled)))
        return np.concatenate(embeddings)

    def _pixels(self, pictures: Pictures) -> torch.Tensor:
        import torch
        from torch.nn.functional import interpolate

        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
            raise ValueError(f"expected uint8 [N, H, W, 3], found {pictures.dtype} {pictures.shape}")
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (self.side, self.side):
            x = interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        return (x - torch.tensor(self.mean).view(1, 3, 1, 1)) / torch.tensor(self.std).view(1, 3, 1, 1)


def _normed(rows: torch.Tensor) -> Rows:
    from torch.nn.functional import normalize

    return np.asarray(normalize(rows.float(), dim=-1).numpy(), dtype=np.float32)
