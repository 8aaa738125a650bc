"""Optional models, on small ones saved on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.contracts.errors import RecipeError
from components.data.scorers import AestheticScorer, ClipScorer, model_digest

CAPTIONS = ["a red star", "", "a blue square on white"]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(60, 40), (32, 32), (20, 90)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from components.data.tokenizing import train_tokenizer, write_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tiny, "vocab_size": 300, "max_position_embeddings": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**tiny, "image_size": 32, "patch_size": 8}, projection_dim=8)
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    write_tokenizer(train_tokenizer(CAPTIONS, 300, 16), folder / "tokenizer")
    return folder


def vit(folder: Path, labels: int, names: dict[int, str] | None = None) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(1)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**tiny, image_size=32, patch_size=8, num_labels=labels)
    if names:
        config.id2label = names
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_similarity_is_the_models_own(clip: Path, pictures: list[Image.Image]) -> None:
    import torch
    from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    found = ClipScorer(str(clip)).similarities(pictures, CAPTIONS)
    assert found.shape == (3,) and found.dtype == np.float32 and np.isnan(found).tolist() == [False, True, False]
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessor.from_pretrained(clip)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(clip / "tokenizer")
    with torch.inference_mode():
        tokens = tokenizer(CAPTIONS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        tokens.pop("token_type_ids", None)
        out = model(**tokens, **processor(images=pictures, return_tensors="pt"))
    expected = (out.image_embeds * out.text_embeds).sum(dim=1).numpy()
    assert found[[0, 2]] == pytest.approx(expected[[0, 2]], abs=1e-4)
    # one by one or together; and again
    alone = [ClipScorer(str(clip)).similarities([p], [c])[0] for p, c in zip(pictures, CAPTIONS, strict=True)]
    assert np.array(alone) == pytest.approx(found, abs=2e-4, nan_ok=True)


def test_a_clip_without_a_preprocessor_takes_the_whole_picture(
    clip: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(clip, folder)
    (folder / "preprocessor_config.json").unlink()
    assert np.isfinite(ClipScorer(str(folder)).similarities(pictures[:1], ["a"])).all()


@pytest.mark.parametrize(
    ("labels", "names", "low", "high"),
    [(1, None, -5, 5), (2, {0: "bad", 1: "good"}, 0, 1), (3, {0: "1", 1: "5", 2: "10"}, 1, 10)],
)
def test_aesthetic_values_by_kind_of_model(
    labels: int, names: dict[int, str] | None, low: float, high: float, pictures: list[Image.Image], tmp_path: Path
) -> None:
    import torch
    from transformers import ViTForImageClassification, ViTImageProcessor

    folder = vit(tmp_path / "vit", labels, names)
    found = AestheticScorer(str(folder)).values(pictures)
    assert found.shape == (3,) and found.dtype == np.float32 and len(set(found.tolist())) == 3
    assert (low < found).all() and (found < high).all()
    with torch.inference_mode():
        pixels = ViTImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
        logits = ViTForImageClassification.from_pretrained(folder).eval()(**pixels).logits
    shares = logits.softmax(dim=1)
    expected = logits[:, 0] if labels == 1 else shares[:, -1] if labels == 2 else shares @ torch.tensor([1.0, 5, 10])
    assert found == pytest.approx(expected.numpy(), abs=1e-4)


def test_no_pictures_no_values(clip: Path) -> None:
    assert ClipScorer(str(clip)).similarities([], []).shape == (0,)


def test_the_digest_is_of_the_files_alone(clip: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(clip, moved)
    assert model_digest("clip", str(moved)) == model_digest("clip", str(clip))
    (moved / "README.md").write_text("words")
    assert model_digest("clip", str(moved)) == model_digest("clip", str(clip))
    (moved / "preprocessor_config.json").write_text("{}")
    assert model_digest("clip", str(moved)) != model_digest("clip", str(clip))


def test_models_that_cannot_judge_are_refused(clip: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    image_model = vit(tmp_path / "vit", 2)
    with pytest.raises(RecipeError, match=r"prepare\.clip.*its type is vit, not clip.*Remedy"):
        ClipScorer(str(image_model))
    weights = load_file(image_model / "model.safetensors")
    headless = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(headless, image_model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match=r"prepare\.aesthetic.*lacks the weights classifier"):
        AestheticScorer(str(image_model))
    (image_model / "model.safetensors").write_bytes(b"\x00" * 50)
    with pytest.raises(RecipeError, match=r"prepare\.aesthetic.*cannot be loaded"):
        AestheticScorer(str(image_model))
    (image_model / "config.json").write_text("{")
    with pytest.raises(RecipeError, match=r"prepare\.aesthetic.*cannot be loaded"):
        AestheticScorer(str(image_model))
    (image_model / "model.safetensors").rename(image_model / "model.bin")  # pickles are not opened
    with pytest.raises(RecipeError, match=r"holds no \*\.safetensors"):
        AestheticScorer(str(image_model))
    settings = tmp_path / "clip"
    shutil.copytree(clip, settings)
    shutil.rmtree(settings / "tokenizer")
    with pytest.raises(RecipeError, match=r"prepare\.clip.*cannot be loaded"):
        ClipScorer(str(settings))
    assert json.loads((clip / "config.json").read_text())["model_type"] == "clip"


def test_an_unknown_name_says_so_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("nobody/no-such-model", "not a name/at all/!"):
        with pytest.raises(RecipeError, match=rf"prepare\.clip: no folder {name}.*hub gave no such model.*Remedy"):
            ClipScorer(name)
