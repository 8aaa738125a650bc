"""The text side of the families that draw in one pass: prompts to words and a sentence, by a frozen CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from components.contracts.errors import ArtifactError, TrainingError
from components.models.quiet import quieten
from components.models.text_encoder import load_tokenizer, text_states


class Reading(NamedTuple):
    """What the text encoder makes of ``N`` prompts."""

    words: Tensor  # last hidden states, fp32 [N, T, W]
    mask: Tensor  # bool [N, T]: from the begin token to the end token; the rest is padding
    sentence: Tensor  # the end token's state, projected into the space shared with pictures, fp32 [N, E]


def reading_of(words: Tensor, ids: Tensor, projection: Tensor, end: int) -> Reading:
    """The reading behind cached last hidden states.

    Args:
        words: ``[N, T, W]``. ids: the tokens, ``[N, T]``. projection: CLIP's ``text_projection``, ``[E, W]``.
        end: id of the end token; the first one of a row counts, since it may also pad.
    """
    last = (ids == end).int().argmax(1)
    mask = torch.arange(ids.shape[1], device=ids.device) <= last[:, None]
    pooled = words[torch.arange(len(words), device=words.device), last]
    return Reading(words, mask, pooled.float() @ projection.float().T)


class Reader:
    """Tokenizer and text tower, frozen."""

    def __init__(self, tokenizer: Any, tower: Any, device: torch.device) -> None:
        self._tokenizer, self._device = tokenizer, device
        self.tower = tower.float().to(device).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Reader:
        """From a model folder's ``text_encoder/`` and ``tokenizer/``."""
        quieten()
        from transformers import CLIPTextModelWithProjection

        tower = CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True
        )
        return cls(load_tokenizer(folder / "tokenizer"), tower, device)

    def truncated(self, prompt: str) -> bool:
        """True if the prompt is longer than the text encoder reads: its end is then ignored."""
        return len(self._tokenizer(prompt, truncation=False)["input_ids"]) > int(self._tokenizer.model_max_length)

    def read(self, prompts: Sequence[str]) -> Reading:
        """The reading of the prompts; equal prompts are read once."""
        distinct = list(dict.fromkeys(prompts))
        ids = self._tokenizer(
            distinct, padding="max_length", truncation=True, max_length=self._tokenizer.model_max_length,
            return_tensors="pt",
        )["input_ids"].to(self._device)  # fmt: skip
        found = reading_of(
            text_states(self.tower.text_model, ids), ids, self.tower.text_projection.weight,
            int(self._tokenizer.eos_token_id),
        )  # fmt: skip
        place = {text: i for i, text in enumerate(distinct)}
        chosen = torch.tensor([place[text] for text in prompts], device=self._device)
        return Reading(*(part[chosen] for part in found))


def projecting_tower(clip: Any) -> Any:
    """The text side of a ``CLIPModel`` as ``CLIPTextModelWithProjection``; weights are copied."""
    from transformers import CLIPTextModelWithProjection

    tower = CLIPTextModelWithProjection(clip.config.text_config)
    tower.text_model.load_state_dict(clip.text_model.state_dict())
    tower.text_projection.load_state_dict(clip.text_projection.state_dict())
    return tower.eval()


def require_clip(folder: Path) -> Path:
    """``folder``, if it holds a CLIP of both towers.

    Raises:
        TrainingError: it holds another text encoder.
    """
    import json

    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"The text encoder's {folder / 'config.json'} cannot be read: {error}", remedy="train it again"
        ) from error
    if kind != "clip":
        raise TrainingError(
            f"The text encoder is of the kind {kind!r}",
            expected="CLIP with both towers: cnn, vae and gan read its words, its sentence and its pictures",
            remedy="choose a CLIP for train.text_encoder, or model.family=diffusion",
        )
    return folder
