"""The DAMSM loss against the equations of the paper, written out in loops."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.training import damsm
from components.training.damsm import Features, Gammas, damsm_loss, matching_loss, sentence_scores, word_scores
from tests.components.training.damsm_rank import FLOATS

Array = npt.NDArray[np.float64]


def _word_score(regions: Array, words: Array, gammas: Gammas) -> float:
    """Eqs. 7 to 10 for one picture (``[R, D]``) and one caption (``[T, D]``), a number at a time."""
    similar = [[float(e @ v) for v in regions] for e in words]
    normal = [
        [math.exp(similar[i][j]) / sum(math.exp(similar[k][j]) for k in range(len(words))) for j in range(len(regions))]
        for i in range(len(words))
    ]
    total = 0.0
    for i, word in enumerate(words):
        weights = [math.exp(gammas.attention * normal[i][j]) for j in range(len(regions))]
        context = sum(
            (w / sum(weights) * region for w, region in zip(weights, regions, strict=True)), np.zeros(len(word))
        )
        cosine = float(context @ word) / (np.linalg.norm(context) * np.linalg.norm(word))
        total += math.exp(gammas.words * cosine)
    return math.log(total) / gammas.words


def _posterior_loss(scores: Array, gamma: float) -> float:
    """Eqs. 11 to 13: minus the mean log posterior, by rows and by columns."""
    n, found = len(scores), 0.0
    for table in (scores, scores.T):
        for i in range(n):
            found -= math.log(math.exp(gamma * table[i, i]) / sum(math.exp(gamma * table[i, j]) for j in range(n)))
    return found / n


def _features(seed: int, n: int = 4, width: int = 6) -> tuple[Features, list[int]]:
    draws = torch.Generator().manual_seed(seed)
    lengths = [int(x) for x in torch.randint(1, 6, (n,), generator=draws)]
    mask = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    parts = [torch.randn(*shape, generator=draws) for shape in ((n, 7, width), (n, 3), (n, 5, width), (n, 3))]
    return Features(parts[0], parts[1], parts[2], mask, parts[3]), lengths


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    gammas=st.builds(Gammas, *(st.floats(0.5, 12) for _ in range(3))),
)
def test_it_is_what_the_equations_say(seed: int, gammas: Gammas) -> None:
    mine, lengths = _features(seed)
    regions, words = mine.regions.numpy().astype(float), mine.words.numpy().astype(float)
    expected = np.array([[_word_score(regions[m], words[n, : lengths[n]], gammas) for n in range(4)] for m in range(4)])
    assert np.allclose(word_scores(mine.regions, mine.words, mine.mask, gammas), expected, atol=2e-4)
    cosines = np.array(
        [
            [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in mine.sentences.numpy().astype(float)]
            for a in mine.images.numpy().astype(float)
        ]
    )
    assert np.allclose(sentence_scores(mine.images, mine.sentences), cosines, atol=1e-5)
    by_word, by_sentence = damsm_loss(mine, gammas=gammas)
    assert float(by_word) == pytest.approx(_posterior_loss(expected, gammas.matching), rel=1e-3, abs=1e-3)
    assert float(by_sentence) == pytest.approx(_posterior_loss(cosines, gammas.matching), rel=1e-3, abs=1e-3)


def test_what_stands_behind_the_mask_has_no_effect() -> None:
    mine, _ = _features(3)
    other = mine.words.clone()
    other[~mine.mask] = 1000.0
    assert torch.equal(word_scores(mine.regions, mine.words, mine.mask), word_scores(mine.regions, other, mine.mask))
    other.requires_grad_(True)
    word_scores(mine.regions, other, mine.mask).sum().backward()
    assert other.grad is not None and other.grad.isfinite().all() and not other.grad[~mine.mask].any()


def test_captions_in_groups_give_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_and_gradients() -> list[torch.Tensor]:
        mine, _ = _features(11, n=6)
        parts = [mine.regions.requires_grad_(True), mine.words.requires_grad_(True)]
        loss = sum(damsm_loss(mine))
        assert isinstance(loss, torch.Tensor)
        return [loss.detach(), *torch.autograd.grad(loss, parts)]

    whole = loss_and_gradients()
    monkeypatch.setattr(damsm, "_ELEMENTS", 6 * 7 * 5 * 2)
    for a, b in zip(whole, loss_and_gradients(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_ranks_together_have_the_loss_of_the_global_batch() -> None:
    """The mean over ranks of what each computes from its own rows and the gathered ones."""
    whole, _ = _features(5, n=6)
    expected = damsm_loss(whole)
    found = []
    for first in (0, 2, 4):
        rows = slice(first, first + 2)
        mine = Features(*(getattr(whole, name)[rows] for name in ("regions", "images", "words", "mask", "sentences")))
        found.append(torch.stack(damsm_loss(mine, whole, first)))
    assert torch.allclose(torch.stack(found).mean(0), torch.stack(expected), atol=1e-5)


@pytest.mark.integration
def test_two_processes_have_the_loss_and_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    whole, _ = _features(8, n=6)
    ids = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 7, 2], [1, 6, 2], [1, 8, 2]])  # some equal over ranks
    given = {name: getattr(whole, name) for name in (*FLOATS, "mask")}
    torch.save({**given, "ids": ids}, tmp_path / "given.pt")
    run = [sys.executable, "-m", "tests.components.training.damsm_rank"]
    ranks = [subprocess.Popen([*run, str(rank), str(tmp_path)], cwd=Path(__file__).parents[3]) for rank in range(2)]
    assert [rank.wait(timeout=900) for rank in ranks] == [0, 0]
    parts = [given[name].requires_grad_(True) for name in FLOATS]
    losses = damsm_loss(whole, same=damsm.equal_rows(ids, ids))
    gradients = torch.autograd.grad(losses[0] + losses[1], parts)
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.allclose((found[0]["losses"] + found[1]["losses"]) / 2, torch.stack(losses).detach(), atol=1e-5)
    for i, gradient in enumerate(gradients):
        # the engine divides the sum over ranks by their number
        assert torch.allclose(torch.cat([f["gradients"][i] for f in found]) / 2, gradient, atol=1e-5)


def test_equal_captions_are_no_mismatches() -> None:
    scores = torch.tensor([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    ids = torch.tensor([[1, 7, 2], [1, 7, 2], [1, 8, 2]])
    same = damsm.equal_rows(ids, ids)
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    strict, fair = matching_loss(scores, scores.T, 1.0), matching_loss(scores, scores.T, 1.0, same=same)
    assert float(fair) < float(strict)
    # by hand: rows 0 and 1 choose between 1 and 0, row 2 between 1 and two zeros
    one = 2 * (2 * math.log(1 + math.exp(-1)) + math.log(1 + 2 * math.exp(-1))) / 3
    assert float(fair) == pytest.approx(one, rel=1e-5)


def test_it_can_be_learned() -> None:
    """Free vectors find their partners: the loss falls to nearly nothing."""
    mine, _ = _features(2)
    parts = [t.clone().requires_grad_(True) for t in (mine.regions, mine.images, mine.words, mine.sentences)]
    optimiser = torch.optim.Adam(parts, lr=0.05)
    losses = []
    for _ in range(120):
        regions, images, words, sentences = parts
        by_word, by_sentence = damsm.DamsmLoss()(regions, images, words, mine.mask, sentences)
        optimiser.zero_grad()
        (by_word + by_sentence).backward()
        optimiser.step()
        losses.append(float((by_word + by_sentence).detach()))
    assert losses[-1] < 0.1 * losses[0]
