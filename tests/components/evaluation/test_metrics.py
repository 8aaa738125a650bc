"""Every metric against a closed form or an independent reference."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluation import metrics
from components.evaluation.intervals import Estimate, bootstrap_mean, paired_difference, pairs_needed, ratio, wilson
from components.evaluation.metrics import (
    Moments,
    clip_scores,
    frechet,
    frechet_estimate,
    inception_score,
    retrieved,
)

rng = np.random.default_rng(0)


def test_moments_equal_numpy_and_merge_in_any_cut() -> None:
    x = rng.normal(3, 2, (257, 6))
    whole = Moments.of(x)
    np.testing.assert_allclose(whole.covariance, np.cov(x, rowvar=False), rtol=1e-12)
    for cuts in ([1, 2], [100], [3, 90, 256]):
        merged = Moments.of(np.split(x, cuts)[0])
        for part in np.split(x, cuts)[1:]:
            merged = merged.merge(Moments.of(part))
        assert merged.count == 257
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-11)


def test_moments_survive_a_large_offset() -> None:
    x = rng.normal(0, 1, (400, 3)) + 1e7
    merged = Moments.of(x[:7]).merge(Moments.of(x[7:]))
    np.testing.assert_allclose(merged.covariance, np.cov(x, rowvar=False), rtol=1e-6)


def test_moments_refuse_what_is_no_matrix() -> None:
    for bad in (np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"features \[N, d\]"):
            Moments.of(bad)


def test_frechet_closed_form_of_diagonal_normals() -> None:
    one = Moments(11, np.array([0.0, 1.0]), np.diag([4.0, 9.0]) * 10)
    two = Moments(11, np.array([2.0, 1.0]), np.diag([1.0, 16.0]) * 10)
    assert frechet(one, two) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 4) ** 2, rel=1e-12)


def test_frechet_equals_scipy_sqrtm_and_torchmetrics() -> None:
    import torch
    from torchmetrics.image.fid import _compute_fid

    x, y = rng.normal(0, 1, (300, 12)) @ rng.normal(0, 1, (12, 12)), rng.normal(0.5, 2, (200, 12))
    one, two = Moments.of(x), Moments.of(y)
    root = scipy.linalg.sqrtm(one.covariance @ two.covariance).real
    shift = one.mean - two.mean
    expected = shift @ shift + np.trace(one.covariance + two.covariance - 2 * root)
    assert frechet(one, two) == pytest.approx(expected, rel=1e-9)
    theirs = _compute_fid(*(torch.from_numpy(a) for a in (one.mean, one.covariance, two.mean, two.covariance)))
    assert frechet(one, two) == pytest.approx(float(theirs), rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 8), st.integers(0, 2**31))
def test_frechet_is_a_distance(n: int, m: int, d: int, seed: int) -> None:
    draw = np.random.default_rng(seed)  # fewer samples than dimensions too: singular covariances
    one, two = Moments.of(draw.normal(0, 1, (n, d))), Moments.of(draw.normal(1, 2, (m, d)))
    there, back = frechet(one, two), frechet(two, one)
    assert there >= 0 and there == pytest.approx(back, rel=1e-6, abs=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_interval_covers_the_spread_of_fresh_samples() -> None:
    reference = Moments.of(rng.normal(0, 1, (4000, 4)))
    values = [frechet(Moments.of(rng.normal(0.3, 1, (300, 4))), reference) for _ in range(60)]
    estimate = frechet_estimate(rng.normal(0.3, 1, (300, 4)), reference)
    assert estimate.low < estimate.value < estimate.high and estimate.n == 300
    half = 1.96 * float(np.std(values))
    assert 0.5 * half < estimate.high - estimate.value < 2 * half


@pytest.mark.parametrize(("n", "d"), [(12, 30), (30, 30), (2, 9)])
def test_resamples_of_few_pictures_are_those_of_the_long_way(n: int, d: int) -> None:
    """With fewer pictures than dimensions the eigenvalues come from the products of pictures."""
    draw = np.random.default_rng(n)
    x, reference = draw.normal(0.4, 1, (n, d)), Moments.of(draw.normal(0, 1, (80, d)) @ draw.normal(0, 1, (d, d)))
    counts = draw.multinomial(n, [1 / n] * n, 7)
    root = metrics._root(reference.covariance)
    expected = [frechet(Moments.of(np.repeat(x, each, axis=0)), reference) for each in counts]
    assert metrics._resampled(x, counts, reference, root) == pytest.approx(expected, rel=1e-6)


def test_ratio_of_two_numbers() -> None:
    drawn = np.random.default_rng(2).normal([6, 3], [0.3, 0.1], (200_000, 2))
    found = ratio(Estimate(6, 6 - 0.6, 6 + 0.6, 10), Estimate(3, 3 - 0.2, 3 + 0.2, 20))
    assert found.value == 2 and found.n == 10
    assert (found.high - found.low) / 4 == pytest.approx(np.std(drawn[:, 0] / drawn[:, 1]), rel=0.02)
    nothing = Estimate(0, 0, 0, 5)
    assert ratio(nothing, nothing).value == 1 and ratio(Estimate(1, 1, 1, 5), nothing).value > 1e300


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 10), (480, 512), (1, 2)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    ours = wilson(k, n, 0.95)
    theirs = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == k / n and ours.low <= ours.value <= ours.high


def test_wilson_refuses_nonsense() -> None:
    for k, n in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="successes"):
            wilson(k, n)


def test_bootstrap_mean_is_near_the_normal_interval_and_repeats() -> None:
    values = rng.integers(0, 2, 600)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(600)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert found == bootstrap_mean(values)


def test_paired_difference() -> None:
    same = paired_difference([1, 0, 1], [1, 0, 1])
    assert same.value == 0 and same.low < -0.2, "three equal answers prove nothing"
    many = paired_difference(np.ones(512), np.ones(512))
    assert many.value == 0 and -0.01 < many.low < 0
    with pytest.raises(ValueError, match="equally long"):
        paired_difference([1], [1, 0])


def test_pairs_needed_gives_the_stated_power() -> None:
    n, discordant, margin = pairs_needed(0.1, 0.03), 0.1, 0.03
    spread = np.sqrt(discordant / n)
    assert scipy.stats.norm.cdf((margin - 1.6449 * spread) / spread) == pytest.approx(0.9, abs=0.01)


def test_r_precision_counts_ranks() -> None:
    texts = np.eye(6)
    keys = [f"k{i}" for i in range(6)]
    hits, candidates = retrieved(texts, texts, keys, 100, seed=0)
    assert hits.all() and candidates == 6, "every picture lies on its own caption"
    hits, _ = retrieved(np.roll(texts, 1, axis=0), texts, keys, 100, seed=0)
    assert not hits.any(), "every picture lies on another caption"
    hits, _ = retrieved(np.ones((6, 6)), texts, keys, 100, seed=0)
    assert not hits.any(), "a tie is no hit"


def test_r_precision_of_chance_is_one_in_candidates() -> None:
    n = 2000
    images, texts = rng.normal(0, 1, (n, 32)), rng.normal(0, 1, (n, 32))
    keys = [str(i) for i in range(n)]
    hits, candidates = retrieved(images, texts, keys, 10, seed=3)
    assert candidates == 10 and hits.mean() == pytest.approx(0.1, abs=0.025)
    again, _ = retrieved(images, texts, keys, 10, seed=3)
    assert (hits == again).all()


def test_r_precision_never_draws_the_true_caption_as_a_rival() -> None:
    # captions 0 and 1 mean the same and have the same embedding: as rivals they would tie and lose
    texts = np.eye(3)[[0, 0, 1, 2]]
    hits, candidates = retrieved(texts, texts, ["same", "same", "b", "c"], 100, seed=0)
    assert hits.all() and candidates == 3
    with pytest.raises(ValueError, match="two meanings"):
        retrieved(texts, texts, ["same"] * 4, 100, seed=0)


def test_clip_score_is_the_cosine_in_hundredths() -> None:
    scores = clip_scores([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]], [[5.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    assert scores == pytest.approx([100, 100 / np.sqrt(2), 0])


def test_inception_score_of_known_cases() -> None:
    sure = np.eye(5)[np.arange(40) % 5]
    assert inception_score(sure).value == pytest.approx(5)
    assert inception_score(np.full((40, 5), 0.2)).value == pytest.approx(1)
    p = np.random.default_rng(1).dirichlet(np.ones(4), 30)
    marginal = p.mean(0)
    expected = np.exp(np.mean([sum(q * np.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in p]))
    found = inception_score(p)
    assert found.value == pytest.approx(expected) and 1 <= found.low < found.value < found.high and found.n == 30
    with pytest.raises(ValueError, match="expected distributions"):
        inception_score(p * 2)
