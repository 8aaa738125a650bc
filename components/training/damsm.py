"""The DAMSM loss: how well pictures and captions match, word by word and as a whole.

Xu et al. 2018, "AttnGAN: Fine-Grained Text to Image Generation with Attentional Generative Adversarial Networks",
sec. 3.2. Equation numbers are the paper's. Everything is a pure function of tensors and is computed in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_ELEMENTS = 1 << 24  # of the similarities of words and regions that are in memory at once


@dataclass(frozen=True)
class Gammas:
    """The sharpness factors of the paper, with its values."""

    attention: float = 5.0  # gamma 1: of a word's attention over regions (eq. 9)
    words: float = 5.0  # gamma 2: how much the best matching word counts (eq. 10)
    matching: float = 10.0  # gamma 3: of the choice among the batch (eq. 11)


@dataclass(frozen=True)
class Features:
    """Features of ``N`` pictures and their captions: row ``i`` of the first two belongs to row ``i`` of the others.

    Attributes:
        regions: ``[N, R, D]``, one vector a region of the picture. images: ``[N, E]``, of the whole picture.
        words: ``[N, T, D]``. mask: bool ``[N, T]``, true where there is a word; at least one a row.
        sentences: ``[N, E]``.
    """

    regions: Tensor
    images: Tensor
    words: Tensor
    mask: Tensor
    sentences: Tensor

    def gathered(self) -> Features:
        """Those of all ranks in rank order; gradients flow back to the rank that made a row."""
        floats = {name: gather(getattr(self, name)) for name in ("regions", "images", "words", "sentences")}
        return replace(self, mask=gather_plain(self.mask), **floats)


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient of a row is summed over all ranks that used it."""

    @staticmethod
    def forward(ctx: object, rows: Tensor) -> Tensor:
        return gather_plain(rows)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def gather(rows: Tensor) -> Tensor:
    """``[n, ...]`` of this rank to ``[ranks * n, ...]``, with gradients. Every rank must call."""
    found: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return found


def gather_plain(rows: Tensor) -> Tensor:
    """As :func:`gather`, without gradients; for tensors of any type."""
    sent = rows.contiguous()
    sent = sent.to(torch.uint8) if rows.dtype == torch.bool else sent  # not every backend sends bool
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sent)
    return torch.cat(parts).to(rows.dtype)


def word_scores(regions: Tensor, words: Tensor, mask: Tensor, gammas: Gammas = Gammas()) -> Tensor:
    """``R(Q_i, D_j)`` of eq. 10, the word-level match of every picture with every caption: ``[M, N]``.

    Args:
        regions: ``[M, R, D]``. words: ``[N, T, D]``. mask: bool ``[N, T]``.

    The context vectors of eq. 9 are never made: their products with the words are sums of the similarities of
    eq. 7, and their lengths follow from the products of the regions with each other. So memory does not grow with
    ``D``; captions are taken in groups, whose intermediate values are computed again in the backward pass.
    """
    with torch.autocast(regions.device.type, enabled=False):
        regions, words = regions.float(), words.float()
        within = regions @ regions.transpose(1, 2)
        each = max(1, _ELEMENTS // max(1, regions.shape[0] * regions.shape[1] * words.shape[1]))
        groups = list(zip(torch.split(words, each), torch.split(mask, each), strict=True))
        if len(groups) == 1 or not torch.is_grad_enabled():
            scores = [_scores(regions, within, w, m, gammas) for w, m in groups]
        else:
            scores = [checkpoint(_scores, regions, within, w, m, gammas, use_reentrant=False) for w, m in groups]
        return torch.cat(scores, dim=1)


def _scores(regions: Tensor, within: Tensor, words: Tensor, mask: Tensor, gammas: Gammas) -> Tensor:
    similar = torch.einsum("ntd,mrd->mntr", words, regions)  # eq. 7
    absent = ~mask[None, :, :, None]
    normal = similar.masked_fill(absent, -torch.inf).softmax(2)  # eq. 8: over the words of a caption
    attention = (gammas.attention * normal).softmax(3)  # eq. 9: over regions
    product = (attention * similar).sum(3)  # of context vector and word
    length = (torch.einsum("mntr,mrs->mnts", attention, within) * attention).sum(3).clamp(min=0)
    norms = (length + 1e-12).sqrt() * words.norm(dim=-1).clamp(min=1e-8)
    cosine = gammas.words * product / norms.clamp(min=1e-8)
    scores: Tensor = cosine.masked_fill(~mask[None], -torch.inf).logsumexp(2) / gammas.words  # eq. 10
    return scores


def sentence_scores(images: Tensor, sentences: Tensor) -> Tensor:
    """Cosine of every picture with every caption as a whole, ``[M, N]`` of ``[M, E]`` and ``[N, E]``."""
    with torch.autocast(images.device.type, enabled=False):
        return F.normalize(images.float(), dim=-1) @ F.normalize(sentences.float(), dim=-1).T


def matching_loss(
    by_image: Tensor, by_text: Tensor, gamma: float, first: int = 0, same: Tensor | None = None
) -> Tensor:
    """Negative log posterior that pictures and captions find each other, both directions added (eqs. 11-13). Scalar.

    Args:
        by_image: scores of this rank's pictures with all captions, ``[n, N]``.
        by_text: scores of this rank's captions with all pictures, ``[n, N]``.
        gamma: factor of the scores.
        first: column at which this rank's own pairs start.
        same: bool ``[n, N]``: pairs that match although they are not one pair (equal captions, captions of one
            picture), which are left out of the choice.

    Returns:
        The mean over this rank's rows; its mean over ranks is the loss of the global batch.
    """
    own = torch.arange(first, first + len(by_image), device=by_image.device)
    if same is not None:
        left_out = same.clone()
        left_out[torch.arange(len(own)), own] = False
        by_image, by_text = (scores.masked_fill(left_out, -torch.inf) for scores in (by_image, by_text))
    return F.cross_entropy(gamma * by_image, own) + F.cross_entropy(gamma * by_text, own)


def damsm_loss(
    mine: Features,
    everyone: Features | None = None,
    first: int = 0,
    gammas: Gammas = Gammas(),
    same: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Word-level loss (eqs. 12 and 13) and sentence-level loss (the same with cosines), two scalars (eq. 14 adds them).

    Args:
        mine: of this rank.
        everyone: of the global batch (:meth:`Features.gathered`); None: the batch is ``mine``.
        first: row of the global batch at which this rank's rows start.
        same: see :func:`matching_loss`.
    """
    if everyone is None or everyone is mine:
        words = word_scores(mine.regions, mine.words, mine.mask, gammas)
        whole = sentence_scores(mine.images, mine.sentences)
        first, pairs = 0, ((words, words.T), (whole, whole.T))
    else:
        all_ = everyone
        pairs = (
            (
                word_scores(mine.regions, all_.words, all_.mask, gammas),
                word_scores(all_.regions, mine.words, mine.mask, gammas).T,
            ),
            (sentence_scores(mine.images, all_.sentences), sentence_scores(all_.images, mine.sentences).T),
        )
    by_word, by_sentence = (matching_loss(a, b, gammas.matching, first, same) for a, b in pairs)
    return by_word, by_sentence


def damsm_over_ranks(mine: Features, ids: Tensor, gammas: Gammas = Gammas()) -> tuple[Tensor, Tensor]:
    """:func:`damsm_loss` of this rank's rows among those of all ranks, captions of equal token ids ``[n, T]`` being the
    same. Every rank must call, with as many rows; the mean over ranks is the loss of the global batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return damsm_loss(mine, gammas=gammas, same=equal_rows(ids, ids))
    first = dist.get_rank() * len(ids)
    return damsm_loss(mine, mine.gathered(), first, gammas, equal_rows(ids, gather_plain(ids)))


def equal_rows(mine: Tensor, everyone: Tensor) -> Tensor:
    """Which rows of ``[n, T]`` and ``[N, T]`` are equal: bool ``[n, N]``, e.g. of token ids: the same caption."""
    return (mine[:, None] == everyone[None]).all(-1)


class DamsmLoss(nn.Module):
    """:func:`damsm_loss` of one rank's tensors as a module, for a generator's loss. Has no parameters."""

    def __init__(self, gammas: Gammas = Gammas()) -> None:
        super().__init__()
        self.gammas = gammas

    def forward(
        self,
        regions: Tensor,
        images: Tensor,
        words: Tensor,
        mask: Tensor,
        sentences: Tensor,
        same: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        features = Features(regions, images, words, mask, sentences)
        return damsm_loss(features, gammas=self.gammas, same=same)
