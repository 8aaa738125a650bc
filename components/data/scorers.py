"""Optional models that judge samples: CLIP for picture and caption, and any image model with one value.

``prepare.clip`` and ``prepare.aesthetic`` are each a folder, as ``save_pretrained`` writes it, or the id of a
model on the Hugging Face hub (:mod:`components.data.hub`). All weights must be there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from components.contracts.errors import RecipeError
from components.data.hub import Door, loaded, one_thread

if TYPE_CHECKING:
    from PIL import Image

BATCH = 32
_DECIMALS = 4  # values are rounded to these: what comes after differs from processor to processor
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "tokenizer/*")  # of a model's folder: weights and settings
_REMEDY = "copy the whole folder of the model again, or name another one"
_DOORS = {
    "clip": Door(
        "clip", _FILES,
        "a folder with config.json, model.safetensors, preprocessor_config.json and tokenizer of a CLIP model, "
        "or its id on the Hugging Face hub, such as openai/clip-vit-base-patch32",
        _REMEDY,
    ),
    "aesthetic": Door(
        "aesthetic", _FILES,
        "a folder with config.json, model.safetensors and preprocessor_config.json of an image classification or "
        "regression model, or its id on the Hugging Face hub",
        _REMEDY,
    ),
}  # fmt: skip

Values = npt.NDArray[np.float32]


def model_digest(key: str, name: str) -> str:
    """SHA-256 (hex) of the files of a model, for the identity of what is measured with it.

    Args:
        key: ``clip`` or ``aesthetic``, for messages. name: folder or hub id.

    Raises:
        RecipeError: there is no such model.
    """
    return _DOORS[key].digest(model_folder(key, name))


def model_folder(key: str, name: str) -> Path:
    """The folder on this machine that holds the model; a model of the hub is fetched if it is not there yet.

    Raises:
        RecipeError: there is no such model.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        return _DOORS[key].fetched(name)
    for file in ("config.json", "*.safetensors"):
        if not any(folder.glob(file)):
            raise RecipeError(
                f"prepare.{key}: {folder} holds no {file}",
                expected=_DOORS[key].expected,
                remedy="correct the path, or save the model there with save_pretrained",
            )
    return folder


class ClipScorer:
    """How well captions fit their pictures, by a CLIP model. Raises ``RecipeError`` where there is no such model."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer, CLIPModel

        folder = model_folder("clip", name)
        with _DOORS["clip"].explained(folder):
            self._model: Any = _clip(CLIPModel, folder)
            self._processor: Any = _processor(folder, self._model.config.vision_config.image_size)
            tokens = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
            if not any((tokens / file).is_file() for file in ("tokenizer.json", "vocab.json")):
                raise ValueError("it has no tokenizer.json")  # transformers would make one up, with no words in it
            self._tokenizer: Any = AutoTokenizer.from_pretrained(tokens, local_files_only=True)
        self._length = int(self._model.config.text_config.max_position_embeddings)

    def similarities(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Values:
        """Cosine, -1..1, of each upright RGB picture with its caption: (n,); NaN where there is no caption."""
        import torch
        from torch.nn.functional import cosine_similarity

        values = []
        with one_thread(), torch.inference_mode():
            for start in range(0, len(images), BATCH):
                pixels = _pixels(self._processor, images[start : start + BATCH])
                texts = list(captions[start : start + BATCH])
                tokens = self._tokenizer(
                    texts, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
                )
                seen = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
                said = self._model.text_model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                ).pooler_output
                found = cosine_similarity(seen, self._model.text_projection(said)).numpy()
                values.append(np.where([bool(text) for text in texts], found, np.nan))
        return _rounded(values)


class AestheticScorer:
    """One value a picture, by a model of ``AutoModelForImageClassification``: of a regression (one output) that
    output; of a classification into grades whose names are numbers (1 .. 10) their mean under its
    probabilities; else the probability of the last class, which is the better one where there are two. Raises
    ``RecipeError`` where there is no such model."""

    def __init__(self, name: str) -> None:
        from transformers import AutoModelForImageClassification

        folder = model_folder("aesthetic", name)
        with _DOORS["aesthetic"].explained(folder):
            self._model: Any = loaded(AutoModelForImageClassification, folder)[0]
            self._processor: Any = _processor(folder, getattr(self._model.config, "image_size", None))
        self._grades = _grades(self._model.config)

    def values(self, images: Sequence[Image.Image]) -> Values:
        """The value of each upright RGB picture: (n,)."""
        import torch

        values = []
        with one_thread(), torch.inference_mode():
            for start in range(0, len(images), BATCH):
                logits = self._model(pixel_values=_pixels(self._processor, images[start : start + BATCH])).logits
                if self._grades is None:
                    values.append(logits[:, 0].numpy())
                else:
                    values.append(logits.softmax(dim=-1).numpy() @ self._grades)
        return _rounded(values)


@lru_cache(maxsize=1)
def clip_scorer(name: str) -> ClipScorer:
    """The scorer of this process."""
    return ClipScorer(name)


@lru_cache(maxsize=1)
def aesthetic_scorer(name: str) -> AestheticScorer:
    """The scorer of this process."""
    return AestheticScorer(name)


def _clip(kind: Any, folder: Path) -> Any:
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if found != "clip":
        raise ValueError(f"its type is {found}, not clip")
    return loaded(kind, folder)[0]


def _processor(folder: Path, side: int | None) -> Any:
    """The model's own way to bring pictures to its size; without one, the whole picture scaled to -1..1."""
    from transformers import AutoImageProcessor, CLIPImageProcessor

    if (folder / "preprocessor_config.json").is_file() or side is None:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    size = {"height": side, "width": side}
    return CLIPImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _grades(config: Any) -> npt.NDArray[np.float32] | None:
    """What each class counts for; None where there is one output."""
    if config.num_labels == 1:
        return None
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    try:
        return np.array([float(name) for name in names], dtype=np.float32)
    except ValueError:
        return np.asarray(np.eye(config.num_labels)[-1], dtype=np.float32)


def _pixels(processor: Any, images: Sequence[Image.Image]) -> Any:
    import torch

    return torch.from_numpy(np.stack(processor(images=list(images), return_tensors="np")["pixel_values"]))


def _rounded(parts: Sequence[npt.NDArray[Any]]) -> Values:
    values = np.concatenate(parts) if parts else np.empty(0)
    return np.round(values.astype(np.float64), _DECIMALS).astype(np.float32)
