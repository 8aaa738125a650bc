"""Embeddings: models made on the spot, the project's own CLIP, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.contracts.errors import RecipeError
from components.contracts.recipe import TextEncoder
from components.data import embedding
from components.data.sketches import DIMENSIONS
from components.models.text_encoder import make_clip
from tests.components.data.collections import drawn

PICTURES = [drawn(number, size) for number, size in enumerate([(64, 64), (90, 40), (33, 120), (32, 32)])]


def vit(folder: Path, seed: int = 0) -> Path:
    import torch
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def dino(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2], "crop_size": {"height": 42, "width": 42}}
        )
    )
    return folder


def resnet(folder: Path) -> Path:
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder)
    return folder


def clip_vision(folder: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def own_clip(folder: Path) -> Path:
    """As a text encoder's artifact holds it: below a folder of its own, with a text tower saved beside it."""

    class Tokenizer:
        model_max_length, bos_token_id, eos_token_id, pad_token_id = 16, 0, 1, 3
        bos_token = "<start>"

        def __len__(self) -> int:
            return 300

    clip = make_clip(TextEncoder(width=32, layers=1, image_layers=1, heads=2), Tokenizer(), 32)
    clip.save_pretrained(folder / "clip")
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.mark.parametrize("make", [vit, dino, resnet, clip_vision, own_clip])
def test_a_saved_model_gives_vectors_of_unit_length(make: Any, tmp_path: Path) -> None:
    name = str(make(tmp_path / "model"))
    vectors = embedding.load(name).embed(PICTURES)
    assert vectors.dtype == np.float16 and len(vectors) == len(PICTURES)
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < 2e-3
    # another process, another batch: the same bytes
    again = embedding.load(name)
    assert np.array_equal(again.embed(PICTURES), vectors)
    assert len({v.tobytes() for v in vectors}) == len(PICTURES)


def test_the_digest_tells_models_apart_and_not_their_folders(tmp_path: Path) -> None:
    one, same, other = vit(tmp_path / "one"), vit(tmp_path / "same"), vit(tmp_path / "other", seed=1)
    assert embedding.digest(str(one)) == embedding.digest(str(same)) != embedding.digest(str(other))
    assert embedding.digest("atelier").startswith("atelier/")


def test_the_built_in_descriptor() -> None:
    vectors = embedding.load("atelier").embed(PICTURES)
    assert vectors.shape == (len(PICTURES), DIMENSIONS) and vectors.dtype == np.float16
    assert embedding.load("atelier").embed([]).shape == (0, DIMENSIONS)


def text_only(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(folder)


def two(folder: Path) -> None:
    vit(folder / "a")
    vit(folder / "b")


def damaged(folder: Path) -> None:
    vit(folder)
    (folder / "model.safetensors").write_bytes(b"no tensors here")


@pytest.mark.parametrize("make", [text_only, two, damaged, Path.mkdir], ids=["text", "two", "damaged", "empty"])
def test_a_folder_without_one_vision_model_is_refused_readably(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "model")
    with pytest.raises(RecipeError, match=r"prepare\.embedding") as caught:
        embedding.load(str(tmp_path / "model"))
    assert caught.value.remedy


def test_a_model_that_is_nowhere_is_refused_readably(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("nobody/no-such-model", str(tmp_path / "not-there"), "two/slashes/here", ""):
        with pytest.raises(RecipeError, match=r"prepare\.embedding") as caught:
            embedding.load(name)
        assert caught.value.remedy and len(str(caught.value)) < 1000


def test_pictures_of_any_mode_and_size_are_read(tmp_path: Path) -> None:
    embedder = embedding.load(str(vit(tmp_path / "model")))
    vectors = embedder.embed([Image.new("RGB", (1, 1)), Image.new("RGB", (3, 2000)), Image.new("RGB", (500, 1), "red")])
    assert np.isfinite(vectors.astype(np.float64)).all()
