"""Embeddings of the semantic tier: the built-in descriptor, or a vision model of the Hugging Face kind.

``prepare.embedding`` is one of

* ``atelier``: :mod:`components.data.sketches`; no model, no download, for copies that hashes miss;
* a folder: ``config.json`` and ``*.safetensors`` as ``save_pretrained`` writes them, of CLIP, SigLIP, DINOv2,
  ViT or any other model that ``AutoModel`` gives pictures to. A folder of this project's store that holds such
  a folder (the artifact of a text encoder or a judge) works as well;
* the id of a model on the Hugging Face hub, fetched once to its usual cache; only its safetensors are.

Scoring calls :func:`digest` for the identity of what it writes, and in each of its processes :func:`load` once.
Beside the embedding it keeps a :func:`components.data.sketches.sketch` of every picture, by which
:mod:`components.data.semantic` compares candidates closely.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from components.contracts.errors import RecipeError
from components.data.hub import Door, loaded, one_thread
from components.data.sketches import DIMENSIONS, describe, sketch

if TYPE_CHECKING:
    import torch
    from PIL import Image

BUILT_IN = "atelier"
_VERSION = 1  # of the built-in descriptor
_BATCH = 32
_FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
_REMEDY = (
    "set prepare.embedding to atelier, or to a folder with config.json and model.safetensors of a vision model, "
    "or to its id on the Hugging Face hub while the hub can be reached"
)

_DOOR = Door(
    "embedding", _FILES, "atelier, or a folder or hub id of a vision model that transformers' AutoModel loads", _REMEDY
)

Vectors = npt.NDArray[np.float16]


class Embedder(Protocol):
    """Pictures to vectors of unit length."""

    def embed(self, images: Sequence[Image.Image]) -> Vectors:
        """Vectors (n, d) of upright RGB pictures of any sizes."""
        ...


def load(name: str) -> Embedder:
    """The embedder of this name.

    Raises:
        RecipeError: there is no such model, or it reads no pictures.
    """
    return _BuiltIn() if name == BUILT_IN else _Model(model_folder(name))


def digest(name: str) -> str:
    """What changes whenever the same picture could get another embedding.

    Raises:
        RecipeError: there is no such model.
    """
    if name == BUILT_IN:
        return f"{BUILT_IN}/{_VERSION}"
    return _DOOR.digest(model_folder(name))


def model_folder(name: str) -> Path:
    """The folder on this machine that holds the model; a model of the hub is fetched if it is not there yet.

    Raises:
        RecipeError: none is there, or more than one.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        return _DOOR.fetched(name)
    configs = [folder / "config.json"] if (folder / "config.json").is_file() else sorted(folder.glob("**/config.json"))
    found = [c.parent for c in configs if any(c.parent.glob("*.safetensors")) and _reads_pictures(c)]
    if len(found) != 1:
        raise RecipeError(
            f"prepare.embedding: {name} holds {'no vision model' if not found else f'{len(found)} vision models'}",
            expected="config.json and *.safetensors of one vision model, in the folder or once below it",
            remedy=_REMEDY if not found else f"name one of them: {', '.join(str(f) for f in found[:3])}",
        )
    return found[0]


def _reads_pictures(config: Path) -> bool:
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # a text tower saved alone has a model type of its own; a vision model says how its pictures are cut
    return isinstance(settings, dict) and ("vision_config" in settings or "num_channels" in settings)


class _BuiltIn:
    def embed(self, images: Sequence[Image.Image]) -> Vectors:
        if not images:
            return np.empty((0, DIMENSIONS), dtype=np.float16)
        return np.stack([describe(sketch(image)) for image in images])


class _Model:
    """A model of transformers, on one thread and in fp32, so that equal pictures give equal bytes."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel

        with _DOOR.explained(folder):
            # a pooler on top can be done without
            model, missing = loaded(AutoModel, folder, spare="pooler")
        self._model: Any = model
        self._pooled = not missing
        config = self._model.config
        side = getattr(getattr(config, "vision_config", config), "image_size", None)
        settings = folder / "preprocessor_config.json"
        self._side, self._mean, self._std = _preprocessing(settings, side)

    def embed(self, images: Sequence[Image.Image]) -> Vectors:
        import torch

        parts = []
        with one_thread(), torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                pixels = np.stack([self._pixels(image) for image in images[start : start + _BATCH]])
                found = self._look(torch.from_numpy(pixels)).float().numpy()
                length = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
                parts.append((found / length).astype(np.float16))
        return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float16)

    def _look(self, pixels: torch.Tensor) -> torch.Tensor:
        model = self._model
        if hasattr(model, "visual_projection"):  # CLIP: where pictures and texts meet
            return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)  # type: ignore[no-any-return]
        seen = model.vision_model(pixel_values=pixels) if hasattr(model, "vision_model") else model(pixel_values=pixels)
        pooled = getattr(seen, "pooler_output", None) if self._pooled else None
        if pooled is None:
            last = seen.last_hidden_state
            pooled = last[:, 0] if last.ndim == 3 else last
        # convolutional models give maps
        return pooled.flatten(2).mean(dim=2) if pooled.ndim > 2 else pooled  # type: ignore[no-any-return]

    def _pixels(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """The whole picture at the model's size, (3, side, side): what was cropped away could not be compared."""
        from PIL import Image

        small = image.convert("RGB").resize((self._side, self._side), Image.Resampling.BICUBIC, reducing_gap=3.0)
        values = (np.asarray(small, dtype=np.float32) / 255 - self._mean) / self._std
        return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def _preprocessing(file: Path, side: Any) -> tuple[int, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Side in pixels, mean and standard deviation by channel: the model's own where its folder states them."""
    settings: dict[str, Any] = {}
    if file.is_file():
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"prepare.embedding: {file} is not JSON", remedy="copy the model again") from error
    size = settings.get("crop_size") or settings.get("size") or side or 224
    side = next(iter(size.values()), 224) if isinstance(size, dict) else size
    side = side[0] if isinstance(side, list | tuple) else side
    mean, std = (settings.get(f"image_{what}", (0.5, 0.5, 0.5)) for what in ("mean", "std"))
    return int(side), np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
