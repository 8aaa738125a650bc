"""The engine: batches, order, cancelling, failing neighbours, and the change of models."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine import Engine, EngineClosed, NoModel, QueueFull, Served
from serving.metrics import Metrics
from serving.schemas import Order


def order(prompt: str = "p", seeds: tuple[int, ...] = (1,), steps: int = 4, guidance: float = 3.0) -> Order:
    return Order(prompt, None, seeds, steps, guidance)


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(painter: Any = None, **settings: Any) -> Engine:
        made.append(Engine(**{"max_batch": 4, "max_queue": 16, "metrics": Metrics(), **settings}))
        if painter:
            made[-1].swap(Served("1", painter))
        return made[-1]

    yield make
    for each in made:
        each.close(2)


def held(painter: Any, engine: Engine) -> Any:
    """The future of an order that is being drawn and held there, so that what follows waits in the queue."""
    painter.gate.clear()
    first = engine.submit(order("first"))
    until(lambda: painter.calls)
    return first


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_pictures_are_those_of_prompt_and_seed(painter: Any, engine: Callable[..., Engine]) -> None:
    drawn = engine(painter).submit(order("a star", (5, 6))).result(10)
    assert [tuple(p[0, 0]) for p in drawn.pixels] == [tuple(painter.colour("a star", s)) for s in (5, 6)]
    assert drawn.served.version == "1" and not drawn.truncated


def test_waiting_orders_of_equal_steps_and_guidance_are_drawn_together(
    painter: Any, engine: Callable[..., Engine]
) -> None:
    it = engine(painter)
    futures = [held(painter, it)]
    for i in range(3):
        futures += [
            it.submit(order(f"a{i}")),
            it.submit(order(f"b{i}", steps=9)),
            it.submit(order(f"c{i}", guidance=1.0)),
        ]
    painter.gate.set()
    for future in futures:
        future.result(10)
    assert [call[0] for call in painter.calls] == [
        ["first"],
        ["a0", "a1", "a2"],
        ["b0", "b1", "b2"],
        ["c0", "c1", "c2"],
    ]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 2)), min_size=1, max_size=8))
def test_any_mix_of_sizes_gives_each_order_its_own_pictures(make_painter: Any, mix: list[tuple[int, int]]) -> None:
    painter = make_painter()
    it = Engine(max_batch=4, max_queue=99, metrics=Metrics())
    it.swap(Served("1", painter))
    orders = [order(f"p{i}", tuple(range(10 * i, 10 * i + n)), steps=s) for i, (n, s) in enumerate(mix)]
    for one, future in [(o, it.submit(o)) for o in orders]:
        pixels = future.result(10).pixels
        assert np.array_equal(pixels[:, 0, 0], [painter.colour(one.prompt, s) for s in one.seeds])
    assert all(len(call[0]) <= 4 for call in painter.calls)
    it.close()


def test_a_full_queue_refuses_at_once_with_a_prediction(painter: Any, engine: Callable[..., Engine]) -> None:
    it = engine(painter, max_queue=2)
    held(painter, it)
    waiting = [it.submit(order()) for _ in range(2)]
    with pytest.raises(QueueFull) as full:
        it.submit(order())
    assert full.value.retry_after >= 1
    waiting[0].cancel()  # its place is free again
    it.submit(order())
    painter.gate.set()


def test_cancelled_orders_are_not_drawn_and_neighbours_are(painter: Any, engine: Callable[..., Engine]) -> None:
    it = engine(painter)
    first = held(painter, it)
    gone, stays = it.submit(order("gone")), it.submit(order("stays"))
    assert gone.cancel() and first.cancel()  # one waits, one is being drawn
    painter.gate.set()
    assert stays.result(10).served.version == "1"
    assert [call[0] for call in painter.calls] == [["first"], ["stays"]]


def test_an_order_that_fails_does_not_harm_its_neighbours(painter: Any, engine: Callable[..., Engine]) -> None:
    it = engine(painter)
    held(painter, it)
    good, bad, fine = it.submit(order("good")), it.submit(order("poison")), it.submit(order("fine"))
    painter.gate.set()
    good.result(10), fine.result(10)
    with pytest.raises(RuntimeError):
        bad.result(10)
    assert it.alive and it.submit(order()).result(10)


def test_an_order_of_many_pictures_that_fails_leaves_nothing_behind(
    painter: Any, engine: Callable[..., Engine]
) -> None:
    it = engine(painter)
    with pytest.raises(RuntimeError):
        it.submit(order("poison", tuple(range(9)))).result(10)
    assert it.submit(order()).result(10) and len(painter.calls) == 2


def test_pictures_of_the_wrong_shape_are_an_error(painter: Any, engine: Callable[..., Engine]) -> None:
    painter.image_size = 16
    with pytest.raises(ValueError, match="expected uint8"):
        engine(painter).submit(order()).result(10)


def test_orders_too_old_fail_instead_of_being_drawn(painter: Any, engine: Callable[..., Engine]) -> None:
    it = engine(painter, timeout_s=0.05)
    held(painter, it)
    late = it.submit(order("late"))
    time.sleep(0.1)
    painter.gate.set()
    with pytest.raises(TimeoutError):
        late.result(10)


def test_a_new_model_takes_new_orders_and_the_old_one_finishes_and_goes(
    make_painter: Any, engine: Callable[..., Engine]
) -> None:
    old, new = make_painter("old"), make_painter("new")
    it = engine(old)
    first, waiting = held(old, it), it.submit(order("waiting"))
    it.swap(Served("2", new))
    after = it.submit(order("after"))
    old.gate.set()
    assert [f.result(10).served.version for f in (first, waiting, after)] == ["1", "1", "2"]
    gone = weakref.ref(old)
    del old, first, waiting
    gc.collect()
    until(lambda: gone() is None)


def test_no_model_and_closing(painter: Any, engine: Callable[..., Engine]) -> None:
    it = engine()
    with pytest.raises(NoModel):
        it.submit(order())
    it.swap(Served("1", painter))
    futures = [it.submit(order(str(i), steps=i + 1)) for i in range(5)]
    it.close()
    assert all(future.result(0) for future in futures) and not it.alive  # what waited is drawn first
    with pytest.raises(EngineClosed):
        it.submit(order())
