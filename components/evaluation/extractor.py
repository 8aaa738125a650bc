"""Feature extractors: pictures and texts to numbers, behind one small interface."""

from __future__ import annotations

import json
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
    """Pictures to numbers. ``digest`` changes whenever the same picture could get others."""

    digest: str

    def arrays(self, pictures: Pictures) -> dict[str, Rows]:
        """What it says of pictures uint8 RGB [N, H, W, 3]: ``features`` [N, d], for distances between distributions;
        of a CLIP also ``embeddings`` [N, e] of unit length, of a classifier ``probabilities`` [N, K]."""
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
    def load(cls, folder: Path, digest: str = "", device: str = "cpu") -> ClipExtractor:
        """From a folder with ``config.json``, ``model.safetensors`` and a tokenizer, in it or in ``tokenizer/``.

        Computes in float32, frozen.

        Raises:
            ArtifactError: the folder does not hold such a model.
        """
        from safetensors import SafetensorError
        from transformers import CLIPModel
        from transformers.utils.logging import disable_progress_bar

        from components.data.hub import loaded

        disable_progress_bar()
        try:
            model, _ = loaded(CLIPModel, folder)
            tokenizer = _tokenizer(folder)
            _, mean, std = preprocessing(folder)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            raise ArtifactError(
                f"No CLIP can be loaded from {folder}: {(str(error).splitlines() or ['it is damaged'])[0]}",
                expected="config.json, model.safetensors and a tokenizer of a CLIP model",
                remedy="where the folder is part of a judge, delete that artifact and run the same command again; "
                "else copy the whole folder of the model again",
            ) from error
        return cls(model.to(device), tokenizer, digest, mean, std)

    @property
    def side(self) -> int:
        """Side of the square pictures that the picture tower reads, in pixels."""
        return int(self.model.config.vision_config.image_size)

    def features(self, pictures: Pictures) -> Rows:
        """Features [N, d] alone."""
        return self.look(pictures)[0]

    def arrays(self, pictures: Pictures) -> dict[str, Rows]:
        """See :class:`Extractor`."""
        features, embeddings = self.look(pictures)
        return {"features": features, "embeddings": embeddings}

    def look(self, pictures: Pictures) -> tuple[Rows, Rows]:
        """See :class:`TextImageExtractor`."""
        import torch

        features, embeddings = [], []
        with torch.inference_mode():
            for start in range(0, len(pictures), _BATCH):
                pixels = pixels_of(pictures[start : start + _BATCH], self.side, self.mean, self.std)
                pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output
                features.append(pooled.cpu().numpy())
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
                pooled = self.model.text_model(input_ids=tokens["input_ids"].to(self.model.device)).pooler_output
                embeddings.append(_normed(self.model.text_projection(pooled)))
        return np.concatenate(embeddings)


@dataclass
class VisionExtractor:
    """A picture model of transformers, such as DINOv2; features are its pooled output."""

    model: Any
    digest: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path, digest: str = "", device: str = "cpu") -> VisionExtractor:
        """From a folder with ``config.json`` and ``model.safetensors``; computes in float32, frozen.

        Raises:
            ArtifactError: the folder does not hold such a model.
        """
        from safetensors import SafetensorError
        from transformers import AutoModel
        from transformers.utils.logging import disable_progress_bar

        from components.data.hub import loaded

        disable_progress_bar()
        try:
            model, _ = loaded(AutoModel, folder)
            side, mean, std = preprocessing(folder)
            side = side or int(model.config.image_size)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
            raise ArtifactError(
                f"No picture model can be loaded from {folder}: {(str(error).splitlines() or ['it is damaged'])[0]}",
                expected="config.json and model.safetensors of a model such as DINOv2",
                remedy="where the folder is part of a judge, delete that artifact and run the same command again; "
                "else copy the whole folder of the model again",
            ) from error
        return cls(model.to(device), digest, side, mean, std)

    def arrays(self, pictures: Pictures) -> dict[str, Rows]:
        """See :class:`Extractor`."""
        import torch

        features = []
        with torch.inference_mode():
            for start in range(0, len(pictures), _BATCH):
                pixels = pixels_of(pictures[start : start + _BATCH], self.side, self.mean, self.std)
                seen = self.model(pixel_values=pixels.to(self.model.device))
                features.append(seen.pooler_output.flatten(1).float().cpu().numpy())
        return {"features": np.concatenate(features)}


def preprocessing(folder: Path) -> tuple[int | None, tuple[float, ...], tuple[float, ...]]:
    """Side in pixels, mean and deviation by channel, as a model's ``preprocessor_config.json`` says.

    Without the file: no side, and pictures scaled to -1..1.
    """
    file = folder / "preprocessor_config.json"
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    size = settings.get("crop_size") or settings.get("size")
    side = next(iter(size.values()), None) if isinstance(size, dict) else size
    mean, std = (tuple(settings.get(f"image_{what}") or (0.5, 0.5, 0.5)) for what in ("mean", "std"))
    return (int(side) if side else None), mean, std


def pixels_of(pictures: Pictures, side: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pictures as a model reads them, float32 [N, 3, side, side]; the rule is stated in the stamp, see ``RESIZE``.

    Raises:
        ValueError: they are no pictures uint8 [N, H, W, 3].
    """
    import torch
    from torch.nn.functional import interpolate

    x = tensor_of(pictures).float() / 255
    if x.shape[-2:] != (side, side):
        x = interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def tensor_of(pictures: Pictures) -> torch.Tensor:
    """Pictures as a tensor uint8 [N, 3, H, W].

    Raises:
        ValueError: they are no pictures uint8 [N, H, W, 3].
    """
    import torch

    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ValueError(f"expected uint8 [N, H, W, 3], found {pictures.dtype} {pictures.shape}")
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if (place / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
    if not (place / "vocab.json").is_file():
        raise ValueError(f"{place} has neither tokenizer.json nor vocab.json")  # transformers would make one up
    return AutoTokenizer.from_pretrained(place, local_files_only=True)


def _normed(rows: torch.Tensor) -> Rows:
    from torch.nn.functional import normalize

    return np.asarray(normalize(rows.float(), dim=-1).cpu().numpy(), dtype=np.float32)
