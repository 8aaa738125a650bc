"""The order of samples does not depend on who asks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import TrainingError
from components.training.order import Order, share, steps_for


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 50), each=st.integers(1, 8), seed=st.integers(0, 2**31), first=st.integers(0, 20))
def test_workers_share_one_order(samples: int, each: int, seed: int, first: int) -> None:
    batch = each * 4
    whole = [Order(samples, batch, seed).batch(s) for s in range(first, first + 3)]
    for world in (1, 2, 4):
        ranks = [Order(samples, batch, seed) for _ in range(world)]
        for step, expected in enumerate(whole, first):
            parts = [order.batch(step)[share(batch, rank, world)] for rank, order in enumerate(ranks)]
            assert np.array_equal(np.concatenate(parts), expected)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 1000))
def test_every_epoch_shows_every_sample_once(samples: int, batch: int, seed: int) -> None:
    order = Order(samples, batch, seed)
    line = np.concatenate([order.batch(s) for s in range(steps_for(samples * 3, batch))])[: samples * 3]
    for epoch in range(3):
        assert sorted(line[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


def test_order_has_no_memory_but_the_step() -> None:
    fresh, used = Order(100, 32, 7), Order(100, 32, 7)
    for step in (9, 0, 4):
        used.batch(step)
    assert np.array_equal(fresh.batch(5), used.batch(5))
    assert fresh.digest(6) == used.digest(6) != Order(100, 32, 8).digest(6)


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"cannot be split among 3 workers.*multiple of 3"):
        share(32, 0, 3)
    with pytest.raises(TrainingError, match=r"0 training samples"):
        Order(0, 32, 0)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), batch=st.integers(1, 9), seed=st.integers(0, 999))
def test_buckets_take_turns_and_none_is_forgotten(sizes: list[int], batch: int, seed: int) -> None:
    order, ends = Order(sizes, batch, seed), np.cumsum(sizes)
    steps = steps_for(sum(sizes) * 4, batch)
    batches = [order.batch(step) for step in range(steps)]
    for indices in batches:
        assert len(set(np.searchsorted(ends, indices, "right").tolist())) == 1
    seen = np.bincount(np.concatenate(batches), minlength=sum(sizes))
    for first, size in zip(ends - sizes, sizes, strict=True):
        mine = seen[first : first + size]
        assert mine.max() - mine.min() <= 1  # every picture of a bucket as often as its neighbours
        assert abs(mine.sum() - 4 * size) <= (len(sizes) + 1) * batch  # and a bucket as often as it is large
    later = Order(sizes, batch, seed)
    assert np.array_equal(later.batch(steps - 1), batches[-1])


def test_one_bucket_is_the_plain_order() -> None:
    assert Order([100], 32, 7).digest(20) == Order(100, 32, 7).digest(20)
    # the order of earlier releases, whose checkpoints are continued
    assert Order(100, 32, 7).digest(20).startswith("e1951aeaff8c")
