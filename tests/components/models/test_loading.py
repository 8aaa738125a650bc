"""Models of others: opened from a folder, saved as parts of ours, refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.contracts.errors import RecipeError
from components.models.autoencoder import Grid, encode_moments, factor_of, load_autoencoder
from components.models.loading import copy_autoencoder, copy_text_encoder, fetch, weights_digest
from components.models.text_encoder import (
    load_text_tower,
    load_tokenizer,
    read_prompts,
    saved_width,
    text_width,
    token_mask,
    with_positions,
)
from tests.components.models.others import save_clip, save_dc, save_kl, save_t5

PROMPTS = ["a red star", "a small blue circle, large", ""]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"), half=True)


def copied(folder: Path, target: Path, max_tokens: int | None = None) -> tuple[dict[str, Any], Any, Any]:
    facts = copy_text_encoder(fetch("text_encoder", str(folder)), target / "model", target / "tokenizer", max_tokens)
    return facts, load_text_tower(target / "model"), load_tokenizer(target / "tokenizer")


def test_a_t5_reads_as_its_makers_do_whatever_the_padding(t5: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    facts, tower, tokenizer = copied(t5, tmp_path, 30)
    assert facts == {"kind": "t5", "width": 24, "max_tokens": 30} and tokenizer.model_max_length == 30
    assert text_width(tower) == saved_width(tmp_path / "model") == 24
    states, mask = read_prompts(tokenizer, tower, PROMPTS)
    own, reader = AutoTokenizer.from_pretrained(t5), T5EncoderModel.from_pretrained(t5).eval()
    for prompt, found, told in zip(PROMPTS, states, mask, strict=True):
        ids = own(prompt, return_tensors="pt")["input_ids"]
        assert told.sum() == ids.shape[1]
        with torch.inference_mode():
            assert torch.allclose(found[told], reader(input_ids=ids)[0][0], atol=1e-5)
    same = read_prompts(tokenizer, tower, ["A Red STAR "])[0]  # as PixArt's pipeline writes a prompt
    assert torch.equal(same[0], states[0])


def test_a_clip_keeps_its_precision_and_its_tokenizer(clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import CLIPTextModel

    facts, tower, tokenizer = copied(clip, tmp_path)
    assert facts == {"kind": "clip", "width": 32, "max_tokens": 40} and saved_width(tmp_path / "model") == 32
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert weights.keys() == load_file(clip / "model.safetensors").keys()
    states, mask = read_prompts(tokenizer, tower, PROMPTS)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        alone = CLIPTextModel.from_pretrained(clip, dtype=torch.float32).eval()(input_ids=ids)[0][0]
    assert torch.allclose(states[0][mask[0]], alone, atol=1e-5)
    # room for more tokens changes nothing up to the end of a prompt
    wider = with_positions(tower, 60)
    assert wider.config.max_position_embeddings == 60 and with_positions(wider, 50) is wider
    with torch.inference_mode():
        assert torch.allclose(wider(input_ids=ids)[0][0], alone, atol=1e-5)


def test_a_text_tower_of_a_pipeline_finds_its_tokenizer_beside_it(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    CLIPTextModel.from_pretrained(clip).save_pretrained(tmp_path / "pipe" / "text_encoder")
    CLIPTokenizer.from_pretrained(clip).save_pretrained(tmp_path / "pipe" / "tokenizer")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    facts, tower, tokenizer = copied(tmp_path / "pipe", tmp_path / "made", 12)
    assert facts["kind"] == "clip_text_model" and len(tokenizer(["red"] * 2)["input_ids"]) == 2
    with_model, whole = copied(clip, tmp_path / "whole", 12)[1], read_prompts(tokenizer, tower, PROMPTS)[0]
    assert torch.allclose(read_prompts(tokenizer, with_model, PROMPTS)[0], whole, atol=1e-5)


def test_token_mask_ends_at_the_first_end_token() -> None:
    ids = torch.tensor([[5, 9, 9, 9], [5, 6, 9, 0], [5, 6, 7, 8]])
    assert token_mask(ids, 9).tolist() == [[True, True, False, False], [True, True, True, False], [True] * 4]


@pytest.mark.parametrize(("save", "kind", "factor", "channels"), [
    (save_kl, "AutoencoderKL", 2, 4), (save_dc, "AutoencoderDC", 4, 6),
])  # fmt: skip
def test_autoencoders_encode_and_decode_as_their_makers_do(
    save: Any, kind: str, factor: int, channels: int, tmp_path: Path
) -> None:
    grid = copy_autoencoder(fetch("autoencoder", str(save(tmp_path / "theirs"))), tmp_path / "ours")
    assert (grid.kind, grid.factor, grid.channels) == (kind, factor, channels)
    assert Grid.of(tmp_path / "ours") == grid and grid.scaling == (0.5 if kind == "AutoencoderKL" else 0.41)
    model, theirs = load_autoencoder(tmp_path / "ours"), load_autoencoder(tmp_path / "theirs")
    assert factor_of(model) == factor
    pixels = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.inference_mode():
        mean, logvar = encode_moments(model, pixels)
        expected = theirs.encode(pixels)
        if kind == "AutoencoderKL":
            assert torch.allclose(logvar, expected.latent_dist.logvar, atol=1e-5)
            expected = expected.latent_dist.mean
        else:
            assert bool((logvar == -30).all())
            expected = expected.latent
        assert mean.shape == logvar.shape == (2, channels, 16 // factor, 24 // factor)
        assert torch.allclose(mean, expected, atol=1e-5)
        assert torch.allclose(model.decode(mean, return_dict=False)[0], theirs.decode(mean, return_dict=False)[0])


def test_a_digest_is_of_the_bytes_and_not_of_the_place(clip: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(clip, tmp_path / "elsewhere")
    assert weights_digest("text_encoder", clip) == weights_digest("text_encoder", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "tokenizer.json").write_text("{}")
    assert weights_digest("text_encoder", clip) != weights_digest("text_encoder", tmp_path / "elsewhere")


def test_what_cannot_be_used_is_refused_with_the_reason(
    t5: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    def refused(folder: Path, match: str, part: str = "text_encoder", max_tokens: int | None = None) -> None:
        with pytest.raises(RecipeError, match=rf"train\.{part}\.source: .*{match}.*Expected: .*Remedy: "):
            if part == "autoencoder":
                copy_autoencoder(fetch(part, str(folder)), tmp_path / "made")
            else:
                copied(folder, tmp_path / "made", max_tokens)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read at import by huggingface_hub, and by its client at every call
    refused(tmp_path / "nobody", "the Hugging Face hub gave no such model")
    refused(Path("some-one/small-t5"), "no folder some-one/small-t5 is here")
    refused(clip, "reads 40 tokens of a prompt, train.text_encoder.max_tokens is 41", max_tokens=41)
    refused(clip, "it is a|cannot be loaded", "autoencoder")
    broken = tmp_path / "broken"
    shutil.copytree(t5, broken)
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.startswith("encoder.block.1"))
    save_file({key: value for key, value in weights.items() if key != name}, broken / "model.safetensors")
    refused(broken, f"it has no weights for {name}")
    (broken / "model.safetensors").write_bytes(b"not weights")
    refused(broken, "cannot be loaded")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    refused(broken, r"holds no \*\.safetensors, only pytorch_model.bin, which could run code")
    silent = tmp_path / "silent"
    shutil.copytree(clip, silent)
    (silent / "tokenizer.json").unlink()
    refused(silent, "has no tokenizer")
    other = save_kl(tmp_path / "kl")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "_class_name": "AutoencoderTiny"}))
    refused(other, "it is a AutoencoderTiny", "autoencoder")
    assert not np.any([(tmp_path / "made" / "model.safetensors").exists()])
