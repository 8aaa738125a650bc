"""The text encoder, whose states of a prompt's tokens condition the denoiser.

CLIP (Radford et al. 2021), a text and an image tower, is trained here or loaded; T5 (Raffel et al. 2020) is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.contracts.errors import TrainingError
from components.contracts.recipe import TextEncoder
from components.models.quiet import quieten


def load_tokenizer(folder: Path) -> Any:
    """The ``PreTrainedTokenizerFast`` of a dataset or text encoder, with end and pad tokens, from its folder.

    Raises:
        TrainingError: a special token is missing.
    """
    quieten()
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    missing = [n for n in ("eos_token", "pad_token") if getattr(tokenizer, n) is None]
    if missing:
        raise TrainingError(
            f"The tokenizer lacks {', '.join(missing)}",
            expected="an end and a pad token",
            remedy="prepare the dataset again",
        )
    return tokenizer


def _require_clip_tokens(tokenizer: Any) -> None:
    # transformers' CLIP pools at the largest id instead of at the end token when that has the id 2
    if tokenizer.bos_token is None or tokenizer.eos_token_id == 2:
        raise TrainingError(
            "The tokenizer lacks a begin token"
            if tokenizer.bos_token is None
            else "The tokenizer's end token has id 2",
            expected="begin, end and pad tokens, the end token with another id than 2",
            remedy="prepare the dataset again",
        )


def make_clip(config: TextEncoder, tokenizer: Any, image_size: int) -> Any:
    """A fresh ``CLIPModel`` for square pictures of ``image_size`` pixels in -1..1 and the tokenizer's ids.

    Raises:
        TrainingError: the tokenizer has no begin token, or an end token that CLIP reads differently.
    """
    quieten()
    _require_clip_tokens(tokenizer)
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    tower = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_attention_heads": config.heads,
        "projection_dim": config.width,
        "hidden_act": "gelu",
    }
    text = CLIPTextConfig(
        **tower,
        num_hidden_layers=config.layers,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        **tower, num_hidden_layers=config.image_layers, image_size=image_size, patch_size=config.patch
    )
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.width)
    )


def load_clip(folder: Path) -> Any:
    """A saved ``CLIPModel``, in fp32 and evaluation mode."""
    quieten()
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()


def kind_of(folder: Path) -> str:
    """What the ``config.json`` of a saved text encoder says it is: "clip", "clip_text_model", "t5" ..."""
    return str(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("model_type"))


def load_text_tower(folder: Path) -> Any:
    """What reads prompts of a saved text encoder, in fp32 and evaluation mode: ``CLIPTextModel`` or
    ``T5EncoderModel``.

    Raises:
        OSError, ValueError: the folder holds no such model.
    """
    quieten()
    import transformers

    kind = kind_of(folder)
    if kind == "clip":
        return text_tower(load_clip(folder))
    if kind not in TOWERS:
        raise ValueError(f"its type is {kind}, not one of clip, {', '.join(TOWERS)}")
    found = getattr(transformers, TOWERS[kind])
    return found.from_pretrained(folder, local_files_only=True, use_safetensors=True).float().eval()


TOWERS = {"clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}  # classes of text towers that are saved alone


def text_width(tower: Any) -> int:
    """Numbers in the state of a token."""
    return int(tower.config.hidden_size)


def saved_width(folder: Path) -> int:
    """:func:`text_width` of a saved text encoder, from its ``config.json``."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    return int(config["hidden_size"] if "hidden_size" in config else config["d_model"])


def text_tower(clip: Any) -> Any:
    """The text tower alone as ``CLIPTextModel``, as a diffusion pipeline wants it; weights are copied."""
    from transformers import CLIPTextModel

    tower = CLIPTextModel(clip.config.text_config)
    weights = {k.removeprefix("text_model."): v for k, v in clip.text_model.state_dict().items()}
    own = tower.state_dict()
    # some releases keep the tower under `text_model.`, some lay it flat
    prefix = "text_model." if all(k.startswith("text_model.") for k in own) else ""
    tower.load_state_dict({prefix + k: v for k, v in weights.items()})
    return tower.eval()


def pad_tokens(rows: list[list[int]], length: int, pad: int, end: int) -> Any:
    """Token rows (begin .. end) as int64 ``[N, length]``, padded, or cut with the end token kept last."""
    import torch

    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    for i, row in enumerate(rows):
        kept = row if len(row) <= length else [*row[: length - 1], end]
        ids[i, : len(kept)] = torch.tensor(kept, dtype=torch.long)
    return ids


def token_mask(ids: Any, end: int) -> Any:
    """True up to the first end token, False behind it, bool ``[N, length]``: what is padding, though the end token
    may pad too. A row without an end token is all True."""
    return ((ids == end).cumsum(-1) - (ids == end).long()) == 0


def text_states(tower: Any, ids: Any, batch_size: int = 256, end: int | None = None) -> Any:
    """Last hidden states ``[N, length, width]`` (fp32) of padded ids, as the stock pipelines compute them.

    Args:
        end: id of the end token. A T5 attends both ways, so it must be told what is padding; a CLIP attends to what
            came before only, and its states up to the end token are the same either way.
    """
    import torch

    masked = tower.config.model_type == "t5"
    assert not masked or end is not None, "a T5 needs the end token's id"
    parts = []
    with torch.inference_mode():
        for part in ids.split(batch_size):
            mask = {"attention_mask": token_mask(part, end).long()} if masked and end is not None else {}
            parts.append(tower(input_ids=part, **mask)[0].float())
    return torch.cat(parts).clone()


def pad_prompts(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Token ids int64 ``[N, model_max_length]`` of prompts, padded or cut."""
    import torch

    rows = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
        return_tensors="pt",
    )["input_ids"]  # fmt: skip
    return torch.as_tensor(rows)


def read_prompts(tokenizer: Any, tower: Any, prompts: Sequence[str]) -> tuple[Any, Any]:
    """States fp32 ``[N, length, width]`` and mask bool ``[N, length]`` of prompts, on the tower's device.

    Equal prompts are read once.
    """
    distinct = list(dict.fromkeys(prompts))
    ids = pad_prompts(tokenizer, distinct).to(next(tower.parameters()).device)
    end = int(tokenizer.eos_token_id)
    states, mask = text_states(tower, ids, end=end), token_mask(ids, end)
    place = {text: i for i, text in enumerate(distinct)}
    at = [place[text] for text in prompts]
    return states[at], mask[at]


def with_positions(tower: Any, length: int) -> Any:
    """The tower with room for ``length`` tokens, as pipelines that pad to a length of their own need it.

    States of a prompt that fits do not change: a CLIP looks back only, so what is padded behind the end is not seen.
    Positions that were never trained are zero. Other towers have no table of positions and are returned as they are.
    """
    import torch

    if tower.config.model_type != "clip_text_model" or tower.config.max_position_embeddings >= length:
        return tower
    from transformers import CLIPTextModel

    settings = {**tower.config.to_dict(), "max_position_embeddings": length}
    wider = CLIPTextModel(type(tower.config).from_dict(settings))
    weights = dict(tower.state_dict())
    name = next(key for key in weights if key.endswith("position_embedding.weight"))
    table = weights[name]
    weights[name] = torch.cat([table, table.new_zeros(length - len(table), table.shape[1])])
    wider.load_state_dict(weights)
    return wider.eval()
