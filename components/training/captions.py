"""Several captions a picture: which one a step trains on.

A row of a dataset has its own caption and, where ``prepare.alternatives`` kept them, others of the same picture. Every
time a picture is shown one of them is drawn, each as likely as the others. The draw is a number of the step's own
generator, made for the whole global batch: the same for any number of workers, and after any resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from components.models.text_encoder import pad_tokens
from components.training.samples import by_size, load_captions, sizes_of, table
from components.training.tokens import tokens_of

Rows = npt.NDArray[np.int64]


class Captions:
    """The captions of all samples of a split, in the order of the samples.

    Args:
        first: padded ids of each row's own caption, int64 ``[N, length]``.
        others: padded ids of the others, int64 ``[K, length]``, sample after sample. counts: how many of them are
            each sample's, ``[N]``.
        sampled: False: the row's own caption alone is trained on.

    Attributes:
        ids: int64 ``[N + K, length]``: the captions of sample 0, its own first, then those of sample 1, ...
    """

    def __init__(self, first: Tensor, others: Tensor, counts: Rows, sampled: bool = True) -> None:
        assert len(first) == len(counts) and len(others) == counts.sum(), "every caption is of one sample"
        self.counts: Rows = counts + 1
        self._starts: Rows = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        self._sampled = sampled and len(others) > 0
        if len(others):
            ids = torch.empty((len(first) + len(others), first.shape[1]), dtype=first.dtype)
            own = torch.zeros(len(ids), dtype=torch.bool)
            own[torch.from_numpy(self._starts)] = True
            ids[own], ids[~own] = first, others
            self.ids = ids
        else:
            self.ids = first

    def rows(self, indices: Rows, draws: torch.Generator) -> Rows:
        """A row of ``ids`` for each of these samples, int64 ``[len(indices)]``.

        Args:
            indices: of the whole global batch.
            draws: the step's generator; nothing is drawn where every sample has one caption.
        """
        if not self._sampled:
            return self._starts[indices]
        numbers = torch.rand(len(indices), generator=draws, dtype=torch.float64).numpy()
        return np.asarray(self._starts[indices] + (numbers * self.counts[indices]).astype(np.int64), np.int64)


def load_all_captions(dataset: Path, tokenizer: Any, split: str = "train", sampled: bool = True) -> Captions:
    """The captions of a split of a dataset as the tokenizer reads them.

    Args:
        tokenizer: with ``model_max_length``; longer captions are cut there, the end token kept.
    """
    first = load_captions(dataset, tokenizer, split)
    found = table(dataset, ["alternatives", "height", "width"], split)
    told = found["alternatives"].to_pylist()
    order = [int(i) for _, at in by_size(sizes_of(found)) for i in at]
    counts = np.array([len(told[i] or ()) for i in order], dtype=np.int64)
    texts = [text for i in order for text in told[i] or ()]
    length, pad, end = first.shape[1], tokenizer.pad_token_id, tokenizer.eos_token_id
    others = torch.as_tensor(pad_tokens(tokens_of(texts, tokenizer), length, pad, end))
    return Captions(first, others, counts, sampled)
