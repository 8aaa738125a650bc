"""Training CLIP, whose text tower conditions the generator: a task of :mod:`components.training.loop`.

By the contrastive loss, the DAMSM loss (:mod:`components.training.damsm`) or both; beside them, where the recipe asks
for it, by what it draws from a caption alone (:mod:`components.training.thumbnail`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from components.contracts.recipe import TextEncoder
from components.models import text_encoder as encoders
from components.models.damsm import PLAIN, Saved, Towers, colours, has_head, load_head, make_head
from components.training import objective
from components.training.captions import load_all_captions
from components.training.damsm import Features, Gammas, damsm_loss, damsm_over_ranks, equal_rows, gather
from components.training.samples import load_pictures, squeezed, to_pixels
from components.training.thumbnail import Thumbnail


class Contrast(nn.Module):
    """CLIP with its losses over the global batch."""

    log_scale: Tensor
    _sentences: Tensor

    def __init__(self, towers: Towers, config: TextEncoder) -> None:
        super().__init__()
        clip, self.config = towers.clip, config
        # DeepSpeed cannot send a parameter without dimensions: the scale is kept here until the end
        scale = clip.logit_scale.detach().reshape(1).clone()
        if config.losses == "damsm":  # which has a factor of its own
            self.register_buffer("log_scale", scale, persistent=False)
        else:
            self.log_scale = nn.Parameter(scale)
        del clip.logit_scale
        self.towers = towers
        self.thumbnail: Thumbnail | None = None
        if config.thumbnail:
            side = min(config.thumbnail, towers.image_size)
            self.thumbnail = Thumbnail(clip.config.text_config.hidden_size, side)
            clip.text_model.register_forward_hook(self._keep_sentences)

    def finished(self) -> Saved:
        """The CLIP model with its scale again, and its head."""
        self.towers.clip.logit_scale = nn.Parameter(self.log_scale.detach().reshape(()))
        return Saved(self.towers)

    def forward(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        found = self._match(pixels, ids)
        if self.thumbnail is None:
            return found
        error = objective.thumbnail_loss(self.thumbnail(self._sentences), pixels)
        loss = found["loss"] + self.config.thumbnail_weight * error
        return {**found, "loss": loss, "matching": found["loss"].detach(), "thumbnail": error.detach()}

    def _keep_sentences(self, tower: nn.Module, given: Any, made: Any) -> None:
        self._sentences = made.pooler_output

    def _match(self, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
        if self.config.losses == "contrastive":
            return self._contrast(*self.towers.pooled(pixels, ids))
        regions, images = self.towers.look(pixels)
        words, mask, sentences = self.towers.read(ids)
        features, gammas = Features(regions, images, words, mask, sentences), Gammas(*self.config.damsm_gammas)
        if self.training:
            by_word, by_sentence = damsm_over_ranks(features, ids, gammas)
        else:  # a held-out batch is one rank's own
            by_word, by_sentence = damsm_loss(features, gammas=gammas, same=equal_rows(ids, ids))
        loss = self.config.damsm_weight * (by_word + by_sentence)
        found = {"loss": loss, "words": by_word.detach(), "sentence": by_sentence.detach()}
        if self.config.losses == "both":
            contrast = self._contrast(images, sentences)
            found |= {"loss": loss + contrast["loss"], "contrastive": contrast["loss"].detach()}
            found["scale"] = contrast["scale"]
        return found

    def _contrast(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        images = nn.functional.normalize(images.float(), dim=-1)
        texts = nn.functional.normalize(texts.float(), dim=-1)
        everyone, first = torch.stack([images, texts], 1), 0
        if self.training:  # a held-out batch is one rank's own
            everyone, first = gather(everyone), dist.get_rank() * len(images)
        # never above 100, as in the paper
        scale = self.log_scale.clamp(max=4.6052).exp()
        loss = objective.contrastive_loss(images, texts, everyone[:, 0], everyone[:, 1], scale, first)
        return {"loss": loss, "scale": scale.detach().reshape(())}


@dataclass
class TextEncoderTask:
    """CLIP on pictures and captions of the dataset's training split."""

    config: TextEncoder
    dataset: Path
    image_size: int
    start: Path | None = None  # folder of a CLIP model to go on from
    name: str = "text encoder"
    tokenizer: Path | None = None  # in place of the dataset's
    sampled: bool = True  # of several captions of a picture one each time, not always the first
    split: str = "train"
    whole_batch: bool = True  # the losses compare the pairs of a batch with each other: it cannot be cut
    _data: Any = field(default=None, repr=False)

    def held_out(self) -> TextEncoderTask:
        """The same on pictures that are never trained on."""
        return replace(self, split="holdout", sampled=False, _data=None)

    def build(self) -> nn.Module:
        if self.start:
            clip, seen = encoders.load_clip(self.start), colours(self.start)
        else:
            clip, seen = encoders.make_clip(self.config, self._tokenizer(), self.image_size), PLAIN
        head = None
        if self.config.losses != "contrastive":
            known = self.start is not None and has_head(self.start)
            head = load_head(Path(str(self.start))) if known else make_head(clip, self.config.damsm_width)
        return Contrast(Towers(clip, head, seen), self.config)

    def open(self, module: nn.Module, device: torch.device) -> list[int]:
        tokenizer = self._tokenizer()
        captions = load_all_captions(self.dataset, tokenizer, self.split, self.sampled)
        # attention is causal and reads up to the end token (which may also pad): the rest need not be computed
        ids = captions.ids
        longest = min(int((ids != tokenizer.pad_token_id).sum(1).max()) + 1, ids.shape[1])
        self._data = load_pictures(self.dataset, self.split), ids[:, :longest].contiguous(), captions
        return list(self._data[0].sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        pictures, ids, captions = self._data
        pixels = squeezed(to_pixels(pictures.take(indices[mine])), self.image_size)
        return {"pixels": pixels, "ids": ids[captions.rows(indices, draws)[mine]]}

    def _tokenizer(self) -> Any:
        return encoders.load_tokenizer(self.tokenizer or self.dataset / "tokenizer")
