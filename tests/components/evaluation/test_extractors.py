"""Extractors of the recipe: real code on tiny models that are saved on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.contracts.errors import ArtifactError, RecipeError
from components.contracts.recipe_judge import Assess, Extractor
from components.evaluation.extractor import ClipExtractor, VisionExtractor
from components.evaluation.extractors import locate, open_extractor, packed, unpacked
from tests.components.evaluation.eyes import save_dinov2
from tests.components.models.others import save_clip

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 42, 42, 3), dtype=np.uint8)


def test_dinov2_says_what_transformers_says(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel

    (found,) = locate([Extractor(kind="dinov2", source=str(save_dinov2(tmp_path / "dino")))])
    assert (found.name, found.kind, len(found.digest)) == ("dinov2", "dinov2", 64)
    found.copy(tmp_path / "copy")
    extractor = open_extractor("dinov2", tmp_path / "copy", found.digest)
    assert isinstance(extractor, VisionExtractor) and extractor.side == 42
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.2)))
    pixels = (torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path / "dino").eval()(pixel_values=pixels).pooler_output.numpy()
    np.testing.assert_allclose(extractor.arrays(PICTURES)["features"], expected, atol=1e-5)
    large = np.kron(PICTURES, np.ones((1, 2, 3, 1), np.uint8))
    assert extractor.arrays(large)["features"].shape == (3, 24), "any size of picture"


def test_a_clip_of_others_reads_and_looks(tmp_path: Path) -> None:
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    (found,) = locate([Extractor(kind="clip", source=str(save_clip(tmp_path / "theirs")), name="big")])
    assert found.name == "big"
    found.copy(tmp_path / "copy")
    extractor = open_extractor("clip", tmp_path / "copy", found.digest)
    assert isinstance(extractor, ClipExtractor)
    words = ["a red star", "blue"]
    model = CLIPModel.from_pretrained(tmp_path / "theirs").eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        tokens = tokenizer(words, padding=True, return_tensors="pt")
        read = model.text_projection(model.text_model(**tokens).pooler_output).numpy()
    read /= np.linalg.norm(read, axis=1, keepdims=True)
    np.testing.assert_allclose(extractor.read(words), read, atol=1e-4)
    assert extractor.mean == (0.4, 0.4, 0.4)
    said = extractor.arrays(PICTURES)
    assert said["features"].shape == (3, 32) and said["embeddings"].shape == (3, 16)


def test_bytes_travel_to_other_machines(tmp_path: Path) -> None:
    folder = save_dinov2(tmp_path / "dino")
    parts = packed({"d": ("dinov2", folder, "x" * 64)})
    here = open_extractor("dinov2", folder, "x" * 64).arrays(PICTURES)["features"]
    np.testing.assert_array_equal(unpacked(parts, "cpu")["d"].arrays(PICTURES)["features"], here)


def test_what_changes_the_eyes_changes_the_digest(tmp_path: Path) -> None:
    one, other = (locate([Extractor(kind="dinov2", source=str(save_dinov2(tmp_path / str(s), s)))])[0] for s in (0, 1))
    again = locate([Extractor(kind="dinov2", source=str(save_dinov2(tmp_path / "again")))])[0]
    assert one.digest == again.digest != other.digest


def test_missing_weights_say_which_file_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RecipeError, match=r"assess\.extractors \(dinov2\): .*no config\.json.*copy config\.json"):
        locate([Extractor(kind="dinov2", source=str(empty))])
    (empty / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"holds no \*\.safetensors.*copy model\.safetensors of the model into that"):
        locate([Extractor(kind="clip", source=str(empty))])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match=r"no folder nobody/nothing is here, and the Hugging Face hub gave no such"):
        locate([Extractor(kind="dinov2", source="nobody/nothing")])


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = save_dinov2(tmp_path / "dino")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="No picture model can be loaded"):
        open_extractor("dinov2", folder, "")
    theirs = save_clip(tmp_path / "clip")
    (theirs / "tokenizer.json").unlink()
    for file in theirs.glob("vocab*"):
        file.unlink()
    with pytest.raises(ArtifactError, match=r"No CLIP can be loaded.*neither tokenizer\.json nor vocab\.json"):
        open_extractor("clip", theirs, "")


def test_names_in_the_recipe() -> None:
    assert Extractor(kind="inception").called == "inception"
    with pytest.raises(ValueError, match="a clip needs a source"):
        Extractor(kind="clip")
    twice = [{"kind": "dinov2", "source": "a"}, {"kind": "dinov2", "source": "b"}]
    for bad in (twice, [{"kind": "clip", "source": "a", "name": "judge"}]):
        with pytest.raises(ValueError, match="names of their own"):
            Assess.model_validate({"extractors": bad})
