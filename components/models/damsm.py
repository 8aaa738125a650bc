"""CLIP's two towers as DAMSM reads them (Xu et al. 2018, sec. 3.2): regions of a picture, words of a caption.

Beside ``model.safetensors`` of the CLIP lies ``damsm.safetensors``: two projections, of the vision tower's patches and
of the text tower's states, into one space (the paper's eq. 6 for the pictures). The whole picture and the whole
caption are CLIP's own pooled and projected features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.contracts.errors import ArtifactError
from components.models.text_encoder import load_clip

WEIGHTS = "damsm.safetensors"
_PREPROCESSOR = "preprocessor_config.json"  # of a CLIP that came from elsewhere: how its pictures are coloured
Colours = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation, by channel, of pixels in 0..1
PLAIN: Colours = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of ours: pixels become -1..1


class DamsmHead(nn.Module):
    """Projections of patches ``[N, R, vision width]`` and of word states ``[N, T, text width]`` to ``width``."""

    def __init__(self, vision_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.regions = nn.Linear(vision_width, width, bias=False)
        self.words = nn.Linear(text_width, width, bias=False)


class Towers(nn.Module):
    """A CLIP with its head: features of pictures and captions for the DAMSM loss and for attention over words.

    Without a head (a CLIP that was trained without DAMSM) CLIP's own projections take its place.

    Args:
        clip: a ``CLIPModel``. head: of the same widths.
        colours: mean and standard deviation of the pixels (0..1) that the vision tower was trained with.
    """

    def __init__(self, clip: Any, head: DamsmHead | None = None, colours: Colours = PLAIN) -> None:
        super().__init__()
        self.clip, self.head, self.colours = clip, head, colours
        self.image_size = int(clip.config.vision_config.image_size)
        self.width = int(clip.config.projection_dim if head is None else head.words.out_features)  # D
        self.register_buffer("mean", torch.tensor(colours[0]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(colours[1]).view(1, 3, 1, 1), persistent=False)

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Regions ``[N, R, D]`` and whole pictures ``[N, E]`` of pixels ``[N, 3, H, W]`` in -1..1; differentiable.

        Pictures of another size are squeezed into the tower's.
        """
        tower = self.clip.vision_model
        seen = tower(pixel_values=self._coloured(pixels))
        patches = tower.post_layernorm(seen.last_hidden_state[:, 1:])  # the first is the class token
        project = self.clip.visual_projection if self.head is None else self.head.regions
        return project(patches), self.clip.visual_projection(seen.pooler_output)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Words ``[N, T, D]``, mask ``[N, T]`` and whole captions ``[N, E]`` of padded token ids ``[N, T]``."""
        return self.read_states(self.clip.text_model(input_ids=ids).last_hidden_state, ids)

    def read_states(self, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`read`, from the text tower's last hidden states ``[N, T, text width]`` of these ids."""
        project = self.clip.text_projection if self.head is None else self.head.words
        end = self.ends(ids)
        whole = self.clip.text_projection(states[torch.arange(len(ids), device=ids.device), end])
        return project(states), words_mask(end, ids.shape[1]), whole

    def pooled(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Whole pictures and whole captions alone, ``[N, E]`` each."""
        seen = self.clip.vision_model(pixel_values=self._coloured(pixels)).pooler_output
        read = self.clip.text_model(input_ids=ids).pooler_output
        return self.clip.visual_projection(seen), self.clip.text_projection(read)

    def _coloured(self, pixels: Tensor) -> Tensor:
        side = (self.image_size, self.image_size)
        if pixels.shape[-2:] != side:
            pixels = nn.functional.interpolate(pixels, side, mode="bicubic", antialias=True).clamp(-1, 1)
        return pixels if self.colours == PLAIN else ((pixels + 1) / 2 - self.mean) / self.std  # type: ignore[operator]

    def ends(self, ids: Tensor) -> Tensor:
        """Where the end token of every row stands, ``[N]``: the state that CLIP takes for the whole caption."""
        end = int(self.clip.config.text_config.eos_token_id)
        # configs of OpenAI's releases say 2, and mean the largest id
        return ids.argmax(dim=1) if end == 2 else (ids == end).int().argmax(dim=1)


def words_mask(ends: Tensor, length: int) -> Tensor:
    """The tokens between begin and end: bool ``[N, length]``; of an empty caption the end token itself."""
    places = torch.arange(length, device=ends.device)[None]
    empty = ends < 2
    return (places >= ends.clamp(max=1)[:, None]) & (places < (ends + empty)[:, None])


def make_head(clip: Any, width: int) -> DamsmHead:
    """A fresh head of ``width`` for this CLIP."""
    config = clip.config
    return DamsmHead(config.vision_config.hidden_size, config.text_config.hidden_size, width)


def has_head(folder: Path) -> bool:
    """Whether the CLIP in this folder was trained with DAMSM."""
    return (Path(folder) / WEIGHTS).exists()


def load_head(folder: Path) -> DamsmHead:
    """The head beside a CLIP.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(Path(folder) / WEIGHTS)
        width, vision = weights["regions.weight"].shape
        head = DamsmHead(vision, weights["words.weight"].shape[1], width)
        head.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{Path(folder) / WEIGHTS} cannot be read as a DAMSM head: {str(error).splitlines()[0]}",
            expected="the projections that a text encoder trained with DAMSM has beside its weights",
            remedy="train it with --set train.text_encoder.losses=both",
        ) from error
    return head


def load_towers(folder: Path) -> Towers:
    """The towers of a text encoder's ``model/`` folder, frozen, in fp32; gradients still flow to the pixels.

    Raises:
        ArtifactError: the head is damaged.
    """
    folder = Path(folder)
    head = load_head(folder) if has_head(folder) else None
    return Towers(load_clip(folder), head, colours(folder)).eval().requires_grad_(False)


def colours(folder: Path) -> Colours:
    """Mean and standard deviation of the pixels that the CLIP in a folder reads; ours read -1..1."""
    file = Path(folder) / _PREPROCESSOR
    settings = json.loads(file.read_text()) if file.exists() else {}
    mean, std = (tuple(settings.get(f"image_{name}", PLAIN[0])) for name in ("mean", "std"))
    return mean, std


class Saved:
    """What is kept of a trained CLIP: its stock folder, with head and colours beside it."""

    def __init__(self, towers: Towers) -> None:
        self.towers = towers

    def save_pretrained(self, folder: Path, safe_serialization: bool = True) -> None:
        """Write the folder, as transformers' models do."""
        from safetensors.torch import save_file

        towers = self.towers
        towers.clip.save_pretrained(folder, safe_serialization=safe_serialization)
        if towers.head is not None:
            tensors = {name: value.detach().cpu().contiguous() for name, value in towers.head.state_dict().items()}
            save_file(tensors, Path(folder) / WEIGHTS)
        if towers.colours != PLAIN:
            text = json.dumps(dict(zip(("image_mean", "image_std"), towers.colours, strict=True)), sort_keys=True)
            (Path(folder) / _PREPROCESSOR).write_text(text + "\n")
