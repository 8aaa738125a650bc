"""Representation alignment: the loss, CLIP's views of pictures, and the head that stays behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from components.contracts.errors import TrainingError
from components.contracts.recipe import Denoiser
from components.models.denoiser import make_denoiser
from components.models.text_encoder import load_clip
from components.training.alignment import Alignment, Views, features_of
from components.training.samples import Buckets
from components.training.task_denoiser import Denoise
from tests.components.models.others import save_clip, save_t5


def test_likeness_is_the_mean_cosine_on_the_coarser_grid() -> None:
    torch.manual_seed(0)
    alignment = Alignment(6, 5)
    inner, seen = torch.randn(3, 6, 8, 4), torch.randn(3, 5, 2, 4)
    pooled = inner.unflatten(2, (2, 4)).mean(3)
    expected = 0.0
    with torch.no_grad():
        for n in range(3):
            for y in range(2):
                for x in range(4):
                    told, wanted = alignment.head(pooled[n, :, y, x]), seen[n, :, y, x]
                    expected += float(told @ wanted / (told.norm() * wanted.norm())) / 24
        assert float(alignment(inner, seen)) == pytest.approx(1 - expected, abs=1e-5)
    alignment.head = torch.nn.Sequential()
    assert float(alignment(seen, 3 * seen)) == pytest.approx(0.0, abs=1e-6)
    assert float(alignment(seen, -seen)) == pytest.approx(2.0, abs=1e-6)


def test_views_are_those_of_the_block_before_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = save_clip(tmp_path / "clip")
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 256, (3, 16, 16, 3), np.uint8), rng.integers(0, 256, (2, 8, 24, 3), np.uint8)]
    views = Views(clip, Buckets(blocks), torch.device("cpu"))
    found = views.take(np.array([2, 0]))
    assert found.shape == (2, 32, 2, 2) and views.take(np.array([3, 4])).shape == (2, 32, 2, 2)
    pixels = torch.from_numpy(blocks[0][[2, 0]]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        told = load_clip(clip).vision_model(pixel_values=(pixels - 0.4) / 0.2, output_hidden_states=True)
    expected = told.hidden_states[1][:, 1:].transpose(1, 2).reshape(2, 32, 2, 2)
    assert torch.allclose(found, expected, atol=2e-2)  # kept in half precision
    monkeypatch.setattr("components.training.alignment._CACHED", 0)
    afresh = Views(clip, Buckets(blocks), torch.device("cpu"))
    assert torch.allclose(afresh.take(np.array([2, 0])), expected, atol=1e-4)
    assert torch.allclose(afresh.take(np.array([4, 3])), views.take(np.array([4, 3])), atol=2e-2)


@pytest.mark.parametrize("family", ["unet", "dit"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_middle_learns_and_the_head_stays_behind(family: str, checkpointing: bool) -> None:
    shape = {"channels": (16, 32), "norm_groups": 4, "heads": 2, "width": 32, "depth": 4}
    config = Denoiser.model_validate({"family": family, "align_weight": 0.5, **shape})
    torch.manual_seed(0)
    module = Denoise(make_denoiser(config, 4, 8, 16), config, 24)
    if checkpointing:
        module.enable_gradient_checkpointing()
    batch = {
        "data": torch.randn(2, 4, 8, 4), "noise": torch.randn(2, 4, 8, 4), "times": torch.tensor([0.2, 0.7]),
        "states": torch.randn(2, 5, 16), "mask": torch.ones(2, 5, dtype=torch.bool),
    }  # fmt: skip
    alone = module(**batch)
    assert set(alone) == {"loss"}  # held-out pictures are measured without it
    both = module(**batch, seen=torch.randn(2, 24, 2, 2))
    assert both["loss"].item() == pytest.approx(float(both["denoising"] + 0.5 * both["unlike"]), abs=1e-5)
    assert both["denoising"].item() == pytest.approx(alone["loss"].item(), abs=1e-5)
    both["loss"].backward()
    first = next(module.model.parameters())
    assert first.grad is not None and all(p.grad is not None for p in module.alignment.parameters())
    assert module.finished() is module.model and not any("head" in name for name in module.model.state_dict())
    assert Denoise(module.model, config.model_copy(update={"align_weight": 0.0}), 24).alignment is None


def test_a_text_encoder_without_eyes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"align_weight needs the picture tower.*is a t5.*align_weight=0"):
        features_of(save_t5(tmp_path))
    assert features_of(save_clip(tmp_path / "clip")) == 32
