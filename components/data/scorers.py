"""Optional models that judge samples: CLIP for picture and caption, and any image model with one value.

``prepare.clip`` and ``prepare.aesthetic`` are each a folder, as ``save_pretrained`` writes it, or the id of a
model on the Hugging Face hub. Only safetensors are loaded, and all weights must be there: a model with a part
made up at random would judge at random. Models run in fp32 on one thread, so that scoring again gives the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from components.contracts.errors import RecipeError

if TYPE_CHECKING:
    from PIL import Image

BATCH = 32
_DECIMALS = 4  # values are rounded to these: what comes after differs from processor to processor
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "tokenizer/*")  # of a model's folder: weights and settings
_EXPECTED = {
    "clip": "a folder with config.json, model.safetensors, preprocessor_config.json and tokenizer of a CLIP model, "
    "or its id on the Hugging Face hub, such as openai/clip-vit-base-patch32",
    "aesthetic": "a folder with config.json, model.safetensors and preprocessor_config.json of an image classification "
    "or regression model, or its id on the Hugging Face hub",
}

Values = npt.NDArray[np.float32]


def model_digest(key: str, name: str) -> str:
    """SHA-256 (hex) of the files of a model, for the identity of what is measured with it.

    Args:
        key: ``clip`` or ``aesthetic``, for messages. name: folder or hub id.

    Raises:
        RecipeError: there is no such model.
    """
    folder, found = model_folder(key, name), hashlib.sha256()
    for path in sorted({p for pattern in _FILES for p in folder.glob(pattern) if p.is_file()}):
        found.update(f"{path.relative_to(folder)}\n".encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def model_folder(key: str, name: str) -> Path:
    """The folder on this machine that holds the model; a model of the hub is fetched if it is not there yet.

    Raises:
        RecipeError: there is no such model.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        return _from_hub(key, name)
    for file in ("config.json", "*.safetensors"):
        if not any(folder.glob(file)):
            raise RecipeError(
                f"prepare.{key}: {folder} holds no {file}",
                expected=_EXPECTED[key],
                remedy="correct the path, or save the model there with save_pretrained",
            )
    return folder


class ClipScorer:
    """How well captions fit their pictures, by a CLIP model. Raises ``RecipeError`` where there is no such model."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer, CLIPModel

        folder = model_folder("clip", name)
        with _explained("clip", folder):
            self._model: Any = _loaded(CLIPModel, folder, "clip")
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
        with _explained("aesthetic", folder):
            self._model: Any = _loaded(AutoModelForImageClassification, folder)
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


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread for the block: other tasks have the other cores, and sums come in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _loaded(kind: Any, folder: Path, model_type: str | None = None) -> Any:
    """The model, frozen, in fp32. Raises ``ValueError`` where it is of another type or lacks weights."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type is not None and found != model_type:
        raise ValueError(f"its type is {found}, not {model_type}")
    model, info = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"it has no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
    return model.float().eval().requires_grad_(False)


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


def _from_hub(key: str, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        try:
            return Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=True))
        except OSError:  # not in the cache
            return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, HFValidationError) as error:
        raise RecipeError(
            f"prepare.{key}: no folder {name} is here, and the Hugging Face hub gave no such model: "
            f"{str(error).splitlines()[0]}",
            expected=_EXPECTED[key],
            remedy="correct the name, copy the model's folder to this machine, or fetch it once with the hub in reach",
        ) from error


@contextlib.contextmanager
def _explained(key: str, folder: Path) -> Iterator[None]:
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"prepare.{key}: the model in {folder} cannot be loaded: {reason}",
            expected=_EXPECTED[key],
            remedy="copy the whole folder of the model again, or name another one",
        ) from error
