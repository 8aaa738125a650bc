"""Training CLIP, whose text tower conditions the denoiser: a task of :mod:`components.training.loop`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.contracts.recipe import TextEncoder
from components.models import text_encoder as encoders
from components.training import objective
from components.training.samples import load_captions, load_pictures, squeezed, to_pixels


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient of a row is summed over all ranks that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


class Contrast(nn.Module):
    """CLIP with its contrastive loss over the global batch."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        # DeepSpeed cannot send a parameter without dimensions: the scale is kept here until the end
        self.log_scale = nn.Parameter(clip.logit_scale.detach().reshape(1).clone())
        del clip.logit_scale
        self.model = clip

    def finished(self) -> Any:
        """The CLIP model with its scale again."""
        self.model.logit_scale = nn.Parameter(self.log_scale.detach().reshape(()))
        return self.model

    def forward(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        seen = self.model.vision_model(pixel_values=pixels).pooler_output
        read = self.model.text_model(input_ids=ids).pooler_output
        images = nn.functional.normalize(self.model.visual_projection(seen).float(), dim=-1)
        texts = nn.functional.normalize(self.model.text_projection(read).float(), dim=-1)
        everyone: Tensor = _Gather.apply(torch.stack([images, texts], 1))  # type: ignore[no-untyped-call]
        # never above 100, as in the paper
        scale = self.log_scale.clamp(max=4.6052).exp()
        first = dist.get_rank() * len(images)
        loss = objective.contrastive_loss(images, texts, everyone[:, 0], everyone[:, 1], scale, first)
        return {"loss": loss, "scale": scale.detach()}


@dataclass
class TextEncoderTask:
    """CLIP on pictures and token rows of the dataset's training split."""

    config: TextEncoder
    dataset: Path
    image_size: int
    start: Path | None = None
    name: str = "text encoder"
    _data: Any = field(default=None, repr=False)

    def build(self) -> nn.Module:
        if self.start:
            return Contrast(encoders.load_clip(self.start))
        tokenizer = encoders.load_tokenizer(self.dataset / "tokenizer")
        return Contrast(encoders.make_clip(self.config, tokenizer, self.image_size))

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        tokenizer = encoders.load_tokenizer(self.dataset / "tokenizer")
        ids = load_captions(self.dataset, tokenizer)
        # attention is causal and reads up to the end token (which may also pad): the rest need not be computed
        longest = min(int((ids != tokenizer.pad_token_id).sum(1).max()) + 1, ids.shape[1])
        self._data = load_pictures(self.dataset), ids[:, :longest].contiguous()
        return list(self._data[0].sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        pictures, ids = self._data
        pixels = squeezed(to_pixels(pictures.take(indices[mine])), self.image_size)
        return {"pixels": pixels, "ids": ids[indices[mine]]}
