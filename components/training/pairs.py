"""What cnn, vae and gan are trained on: pictures, and what the frozen text encoder reads in their captions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from components.models import one_pass
from components.models.reading import Reader, projecting_tower
from components.models.text_encoder import load_clip, load_tokenizer, text_states
from components.runtime.precision import autocast
from components.training.captions import load_all_captions
from components.training.samples import by_size, load_pictures, sizes_of, table, to_pixels
from components.training.texts import load_states

_STATES_LIMIT = 1 << 29  # bytes of text states that are worth keeping in memory


class Learner(Protocol):
    """The module of a task: a network with what it is trained by."""

    network: Any

    def watch(self, clip: Path, device: torch.device) -> None:
        """Load the frozen parts that the loss looks through; they are no parameters of the module."""
        ...


@dataclass
class PairsTask:
    """Pictures and readings of a split, batch by batch; a task of :mod:`components.training.loop` adds the module.

    Args:
        config: the recipe's section. dataset: folder of the artifact. clip, tokenizer: of the text encoder.
        side: of the pictures in pixels; others are scaled to cover it and cropped in the middle.
        start: folder of the network that training goes on from. texts: states of all captions, encoded
            beforehand. sampled: every caption of a picture is trained on, one at a time.
    """

    config: Any
    dataset: Path
    clip: Path
    tokenizer: Path
    side: int
    start: Path | None = None
    texts: Path | None = None
    sampled: bool = True
    name: str = ""
    split: str = "train"
    _data: Any = field(default=None, repr=False)

    def design(self) -> one_pass.Design:
        """What the network is made from."""
        facts = load_clip(self.clip).config
        return one_pass.Design(self.config, self.side, facts.text_config.hidden_size, facts.projection_dim)

    def network(self) -> tuple[one_pass.Design, nn.Module]:
        """The network, fresh or with the weights it starts from."""
        if self.start:
            return one_pass.load_network(self.start)[0], one_pass.load_network(self.start)[1].train()
        design = self.design()
        return design, one_pass.make_network(design)

    def held_out(self) -> PairsTask | None:
        """The same task on the held-out rows; None where its loss says nothing there."""
        return replace(self, split="holdout", sampled=False, texts=None, _data=None)

    def open(self, module: Any, device: torch.device) -> list[int]:
        """Read pictures and captions, and the captions' states where they fit; see :class:`Task`."""
        tokenizer = load_tokenizer(self.tokenizer)
        captions = load_all_captions(self.dataset, tokenizer, self.split, self.sampled)
        pictures = load_pictures(self.dataset, self.split)
        reader = Reader(tokenizer, projecting_tower(load_clip(self.clip)), device)
        ends = (captions.ids == tokenizer.eos_token_id).int().argmax(1)
        ids = captions.ids[:, : int(ends.max()) + 1].contiguous()
        width, states = reader.tower.config.hidden_size, None
        if self.texts:
            states = load_states(self.texts, captions.ids.shape[1], self.split, len(captions.ids))[1][:, : ids.shape[1]]
        elif ids.numel() * width * 2 <= _STATES_LIMIT:
            tower = reader.tower.text_model
            states = torch.cat([text_states(tower, part.to(device)).cpu().half() for part in torch.split(ids, 1024)])
        if self.split == "train":
            module.watch(self.clip, device)
        self._data = pictures, captions, ids, ends, states, reader, device
        return list(pictures.sizes)

    def batch(self, indices: Any, mine: slice, draws: torch.Generator) -> dict[str, Tensor]:
        """This rank's pairs: ``pixels`` ``[n, 3, side, side]`` in -1..1, ``ids`` ``[n, T]`` and their reading."""
        pictures, captions, ids, ends, states, reader, device = self._data
        more = self.chance(len(indices), draws)
        rows = torch.from_numpy(captions.rows(indices, draws)[mine])
        chosen = ids[rows]
        words = text_states(reader.tower.text_model, chosen.to(device)) if states is None else states[rows].float()
        last = ends[rows]
        pooled = words[torch.arange(len(rows)), last.to(words.device)]
        return {
            "pixels": covered(to_pixels(pictures.take(indices[mine])), self.side),
            "ids": chosen,
            "words": words,
            "mask": torch.arange(ids.shape[1]) <= last[:, None],
            "sentence": (pooled.to(device) @ reader.tower.text_projection.weight.T).cpu(),
            **{name: value[mine] for name, value in more.items()},
        }

    def chance(self, count: int, draws: torch.Generator) -> dict[str, Tensor]:
        """Random numbers of a step for the whole global batch, ``[count, ...]`` each."""
        return {}

    def sheet(self, module: Any, count: int) -> tuple[Any, list[str]]:
        """Pictures of the first ``count`` held-out captions with the seeds 0, 1, ..., for the sample sheet."""
        reader, device = self._data[5:]
        rows = table(self.dataset, ["caption", "height", "width"], "holdout")
        order = [int(i) for _, at in by_size(sizes_of(rows)) for i in at] if rows.num_rows else []
        prompts = [rows["caption"][i].as_py() for i in order[:count]]
        if not prompts:
            return np.zeros((0, self.side, self.side, 3), np.uint8), []
        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        noise = torch.stack([torch.randn(module.network.noise_size, generator=draws) for draws in seeds])
        with torch.inference_mode(), autocast(device.type):
            pictures = module.network(reader.read(prompts), noise.to(device))
        return one_pass.to_uint8(pictures), prompts


def covered(pixels: Tensor, side: int) -> Tensor:
    """Pictures of another shape scaled until they cover ``side`` x ``side``, and cropped in the middle."""
    height, width = pixels.shape[-2:]
    if (height, width) == (side, side):
        return pixels
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    if size != (height, width):
        pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(-1, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return pixels[:, :, top : top + side, left : left + side].contiguous()
