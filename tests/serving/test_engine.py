"""The engine: who joins and leaves a batch between which steps, failing neighbours, and the change of models."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine import Engine, EngineClosed, NoModel, Preview, QueueFull, Served
from serving.metrics import Metrics
from serving.schemas import Order

Make = Callable[..., Engine]


def order(prompt: str = "p", seeds: Sequence[int] = (1,), steps: int = 4, guidance: float = 3.0, **more: Any) -> Order:
    return Order(prompt, more.pop("negative", None), tuple(seeds), steps, guidance, **more)


@pytest.fixture
def engine() -> Iterator[Make]:
    made: list[Engine] = []

    def make(painter: Any = None, **settings: Any) -> Engine:
        made.append(Engine(**{"max_batch": 4, "max_queue": 16, "metrics": Metrics(), "warm_up_s": 0, **settings}))
        if painter:
            made[-1].swap(Served("1", painter))
        return made[-1]

    yield make
    for each in made:
        each.close(2)


@pytest.fixture
def by_step(make_painter: Any) -> Any:
    """A Painter that takes a step when ``let()`` is called, and is then held before the next one."""

    class ByStep(make_painter):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.allowed, self.taken = threading.Semaphore(0), 0

        def step(self, drawings: Any) -> None:
            assert self.allowed.acquire(timeout=20)
            try:
                super().step(drawings)
            finally:
                self.taken += 1

        def let(self, steps: int = 1) -> None:
            for _ in range(steps):
                before = self.taken
                self.allowed.release()
                until(lambda before=before: self.taken > before)

    return ByStep()


def held(painter: Any, engine: Engine, prompt: str = "first", **more: Any) -> Any:
    """The ticket of an order that is being drawn and held there, so that what follows waits in the queue."""
    painter.gate.clear()
    first = engine.submit(order(prompt, **more))
    until(lambda: painter.calls)
    return first


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_pictures_are_those_of_prompt_and_seed(painter: Any, engine: Make) -> None:
    drawn = engine(painter).submit(order("a star", (5, 6))).future.result(10)
    assert [tuple(p[0, 0]) for p in drawn.pixels] == [tuple(painter.colour("a star", s)) for s in (5, 6)]
    assert drawn.served.version == "1" and not drawn.truncated
    assert [call[:2] for call in painter.calls] == [(["a star", "a star"], [5, 6])] * 4


def test_orders_join_and_leave_between_steps(by_step: Any, engine: Make) -> None:
    it = engine(by_step)
    long = it.submit(order("long", steps=5))
    by_step.let(2)
    short = it.submit(order("short", steps=2, guidance=1.0, negative="blur", sampler="euler"))
    by_step.let()  # the third of "long" was held before "short" came
    by_step.let(1)
    last = it.submit(order("last", steps=1))
    by_step.let()
    assert short.future.result(10) and long.future.result(10) and not last.future.done()
    by_step.let()
    assert last.future.result(10)
    assert [call[0] for call in by_step.calls] == [
        ["long"], ["long"], ["long"], ["long", "short"], ["long", "short"], ["last"],
    ]  # fmt: skip
    assert by_step.calls[3][2:] == ([5, 2], [3.0, 1.0])


def test_sizes_are_drawn_apart_and_in_turn(by_step: Any, engine: Make) -> None:
    it = engine(by_step)
    first = it.submit(order("own", steps=3))
    by_step.let()
    wide = it.submit(order("wide", steps=2, width=12, height=4))
    same = it.submit(order("same", steps=2, width=8, height=8))
    by_step.let(5)
    assert wide.future.result(10).pixels.shape == (1, 4, 12, 3)
    assert first.future.result(10) and same.future.result(10).pixels.shape == (1, 8, 8, 3)
    assert [call[0] for call in by_step.calls] == [["own"], ["own"], ["own", "same"], ["wide"], ["same"], ["wide"]]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3)), min_size=1, max_size=8))
def test_any_mix_of_sizes_gives_each_order_its_own_pictures(make_painter: Any, mix: list[tuple[int, int]]) -> None:
    painter = make_painter()
    it = Engine(max_batch=4, max_queue=99, metrics=Metrics(), warm_up_s=0)
    it.swap(Served("1", painter))
    orders = [order(f"p{i}", range(10 * i, 10 * i + n), steps=s) for i, (n, s) in enumerate(mix)]
    for one, ticket in [(o, it.submit(o, owner=str(i % 3))) for i, o in enumerate(orders)]:
        pixels = ticket.future.result(10).pixels
        assert np.array_equal(pixels[:, 0, 0], [painter.colour(one.prompt, s) for s in one.seeds])
    assert all(len(call[0]) <= 4 for call in painter.calls)
    assert sum(len(call[0]) for call in painter.calls) == sum(n * s for n, s in mix)
    it.close()


def test_owners_share_the_work_whatever_they_ask_for(painter: Any, engine: Make) -> None:
    it = engine(painter, max_batch=1, max_queue=99)
    held(painter, it)
    tickets = [it.submit(order(f"a{i}", steps=1), owner="a") for i in range(6)]
    tickets += [it.submit(order(f"b{i}", steps=3), owner="b") for i in range(2)]
    tickets.append(it.submit(order("c", steps=1), owner="c"))
    painter.gate.set()
    for ticket in tickets:
        ticket.future.result(10)
    # "b" has three steps a turn, so the others have three turns to each of its own
    assert painter.begun == ["first", "a0", "b0", "c", "a1", "a2", "a3", "b1", "a4", "a5"]


def test_an_order_of_many_pictures_leaves_room_for_others(painter: Any, engine: Make) -> None:
    it = engine(painter, max_batch=2)
    held(painter, it)
    many, one = it.submit(order("many", range(6)), owner="a"), it.submit(order("one"), owner="b")
    painter.gate.set()
    many.future.result(10), one.future.result(10)
    assert painter.begun.index("one") == 2  # after the first of "many"


def test_a_full_queue_refuses_at_once_with_a_prediction(painter: Any, engine: Make) -> None:
    it = engine(painter, max_queue=2, max_batch=1)
    held(painter, it)
    waiting = [it.submit(order()) for _ in range(2)]
    with pytest.raises(QueueFull) as full:
        it.submit(order())
    assert full.value.retry_after >= 1 and it.waiting == 2 and it.busy == 1
    assert full.value.place_s is not None and 0 <= full.value.place_s <= full.value.retry_after
    assert waiting[0].cancel()  # its place is free again
    it.submit(order())
    painter.gate.set()


def test_a_wait_that_is_too_long_is_refused(painter: Any, engine: Make) -> None:
    it = engine(painter, max_batch=1, max_wait_s=3.0)  # a step is taken to last 0.1 s
    held(painter, it, steps=10)
    it.submit(order(steps=10))
    it.submit(order(steps=1))
    with pytest.raises(QueueFull) as full:
        it.submit(order(steps=1), served=it.served, owner="")
        it.submit(order(steps=40))
        it.submit(order(steps=1))
    assert 2 <= full.value.retry_after <= 7 and it.waiting == 4
    assert full.value.place_s is None  # another order may have room
    painter.gate.set()


def test_cancelled_orders_are_not_drawn_and_neighbours_are(painter: Any, engine: Make) -> None:
    it = engine(painter, max_batch=1)
    first = held(painter, it)
    gone, stays = it.submit(order("gone")), it.submit(order("stays"))
    assert gone.cancel() and first.cancel()  # one waits, one is being drawn
    painter.gate.set()
    assert stays.future.result(10).served.version == "1" and not stays.cancel()
    assert [call[0] for call in painter.calls] == [["first"], *[["stays"]] * 4]
    assert first.progress().state == "done"


def test_cancelling_takes_effect_within_one_step(by_step: Any, engine: Make) -> None:
    it = engine(by_step)
    tickets = [it.submit(order(name, steps=4)) for name in ("a", "b", "c")]
    by_step.let(1)
    until(lambda: it.busy == 3)
    by_step.let(1)
    assert tickets[1].cancel()
    by_step.let(1)  # was begun with all three, perhaps
    by_step.let(1)
    assert "b" not in by_step.calls[-1][0] and {"a", "c"} <= set(by_step.calls[-1][0])
    by_step.allowed.release(20)
    assert tickets[0].future.result(10) and tickets[2].future.result(10)


@pytest.mark.parametrize("bad", ["poison", "wrong"])
def test_an_order_that_fails_does_not_harm_its_neighbours(painter: Any, engine: Make, bad: str) -> None:
    it = engine(painter, max_batch=8)
    first = held(painter, it)
    good, evil, fine = it.submit(order("good", (1, 2))), it.submit(order(bad, (1, 2, 3))), it.submit(order("fine"))
    painter.gate.set()
    first.future.result(10), good.future.result(10), fine.future.result(10)
    with pytest.raises((RuntimeError, ValueError), match="secret detail"):
        evil.future.result(10)
    assert it.alive and it.submit(order()).future.result(10) and it.busy == it.waiting == 0
    assert [call[0].count("good") for call in painter.calls if "good" in call[0] and bad not in call[0]] == [2] * 4


def test_an_order_of_many_pictures_that_fails_leaves_nothing_behind(painter: Any, engine: Make) -> None:
    it = engine(painter)
    with pytest.raises(RuntimeError):
        it.submit(order("poison", range(9))).future.result(10)
    assert it.submit(order()).future.result(10) and it.waiting == 0
    assert painter.begun.count("poison") == 4


def test_pictures_of_the_wrong_shape_are_an_error(painter: Any, engine: Make) -> None:
    it = engine(painter)
    painter._painted = lambda drawings: np.zeros((len(drawings), 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="expected uint8"):
        it.submit(order()).future.result(10)


def test_a_batch_too_large_for_memory_is_never_tried_again(make_painter: Any, engine: Make) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    class Small(make_painter):  # type: ignore[misc]
        def step(self, drawings: Any) -> None:
            if len(drawings) > 2:
                self.refused = getattr(self, "refused", 0) + 1
                raise OutOfMemoryError("no memory")
            super().step(drawings)

    painter = Small()
    it = engine(painter, max_batch=8)
    assert len(it.submit(order("a", range(8))).future.result(10).pixels) == 8
    tried = painter.refused
    assert tried and len(it.submit(order("b", range(8))).future.result(10).pixels) == 8
    assert painter.refused == tried


def test_orders_too_old_fail_in_the_queue_and_in_the_batch(painter: Any, engine: Make) -> None:
    it = engine(painter, timeout_s=0.05, max_batch=1)
    first = held(painter, it)
    late, patient = it.submit(order("late")), it.submit(order("patient"), timeout_s=10)
    time.sleep(0.1)
    painter.gate.set()
    for ticket in (first, late):
        with pytest.raises(TimeoutError):
            ticket.future.result(10)
    assert patient.future.result(10) and "late" not in painter.begun


def test_previews_are_even_and_belong_to_their_picture(painter: Any, engine: Make) -> None:
    seen: list[Preview] = []
    ticket = engine(painter).submit(order("a", (3, 4), steps=8), partial_images=3, on_preview=seen.append)
    ticket.future.result(10)
    assert [(p.image, p.step, p.steps) for p in seen] == [(i, s, 8) for s in (2, 4, 6) for i in (0, 1)]
    for preview in seen:
        assert preview.pixels.shape == (8, 8, 3)
        assert tuple(preview.pixels[0, 0]) == tuple(painter.colour("a", 3 + preview.image) // 2)


def test_few_steps_have_few_previews_and_one_pass_none(painter: Any, engine: Make) -> None:
    seen: list[Preview] = []
    it = engine(painter)
    it.submit(order(steps=2), partial_images=3, on_preview=seen.append).future.result(10)
    assert [p.step for p in seen] == [1]
    painter.uses_steps = False
    it.submit(order(steps=1), partial_images=3, on_preview=seen.append).future.result(10)
    assert len(seen) == 1


@pytest.mark.parametrize("culprit", ["listener", "model"])
def test_a_preview_that_fails_harms_no_picture(painter: Any, engine: Make, culprit: str) -> None:
    called: list[int] = []

    def fail(*_: Any) -> Any:
        called.append(1)
        raise ConnectionError("gone")

    if culprit == "model":
        painter.preview = fail
    it = engine(painter)
    ticket = it.submit(order(steps=8), partial_images=3, on_preview=fail)
    assert ticket.future.result(10).pixels.shape == (1, 8, 8, 3) and len(called) == 1 and it.alive


def test_progress_tells_place_steps_and_time(by_step: Any, engine: Make) -> None:
    it = engine(by_step, max_batch=1)
    tickets = [it.submit(order(name, steps=4)) for name in ("a", "b", "c")]
    by_step.let(2)
    until(lambda: tickets[0].progress().step == 2)
    said = [ticket.progress() for ticket in tickets]
    assert [(p.state, p.ahead, p.step, p.steps) for p in said] == [
        ("drawing", 0, 2, 4), ("queued", 0, 0, 4), ("queued", 1, 0, 4),
    ]  # fmt: skip
    assert 0 < said[0].seconds_left < said[1].seconds_left < said[2].seconds_left
    by_step.allowed.release(20)
    assert tickets[2].future.result(10) and tickets[2].progress().seconds_left == 0
    assert tickets[2].progress().state == "done" and tickets[2].progress().step == 4


def test_predictions_come_true(make_painter: Any, engine: Make) -> None:
    it = engine(make_painter(seconds=0.02), max_batch=2, warm_up_s=0.3)
    for _ in range(3):
        it.submit(order(steps=10)).future.result(10)  # learns its pace
    started = time.monotonic()
    tickets = [it.submit(order(steps=10)) for _ in range(6)]
    predicted = [ticket.progress().seconds_left for ticket in tickets]
    waits = it.wait_estimate()
    for ticket in tickets:
        ticket.future.result(10)
    taken = time.monotonic() - started
    assert all(b > a - 0.01 for a, b in itertools.pairwise(predicted)), predicted
    assert 0.4 * taken < predicted[-1] < 2.5 * taken and waits == 1


@pytest.mark.parametrize(("a_row", "together"), [(0.0, 4), (0.01, 1)])
def test_the_warm_up_finds_how_many_are_worth_a_step(
    make_painter: Any, engine: Make, a_row: float, together: int
) -> None:
    class Timed(make_painter):  # type: ignore[misc]
        def step(self, drawings: Any) -> None:
            time.sleep(a_row * sum(d.rows for d in drawings) or 0.004)
            super().step(drawings)

    painter = Timed()
    it = engine(painter, warm_up_s=1.0)
    painter.calls.clear()
    held(painter, it)
    tickets = [it.submit(order(f"{i}")) for i in range(6)]
    painter.gate.set()
    for ticket in tickets:
        ticket.future.result(10)
    assert max(len(call[0]) for call in painter.calls) == together


def test_a_new_model_takes_new_orders_and_the_old_one_finishes_and_goes(make_painter: Any, engine: Make) -> None:
    old, new = make_painter("old"), make_painter("new")
    it = engine(old, max_batch=1)
    first, waiting = held(old, it), it.submit(order("waiting"))
    it.swap(Served("2", new))
    after = it.submit(order("after"))
    old.gate.set()
    assert [t.future.result(10).served.version for t in (first, waiting, after)] == ["1", "1", "2"]
    assert tuple(after.future.result().pixels[0, 0, 0]) == tuple(new.colour("after", 1))
    gone = weakref.ref(old)
    del old, first, waiting
    gc.collect()
    until(lambda: gone() is None)


def test_models_take_turns(make_painter: Any, engine: Make) -> None:
    champion, other = make_painter("a"), make_painter("b")
    it = engine(champion)
    champion.gate.clear()
    mine = it.submit(order("mine", steps=50))
    theirs = it.submit(order("theirs", steps=2), Served("9", other))  # never swapped in
    champion.gate.set()
    assert theirs.future.result(10).served.version == "9" and len(champion.calls) <= 10
    assert it.served and it.served.version == "1" and mine.future.result(10).served.version == "1"


def test_no_model_and_closing(painter: Any, engine: Make) -> None:
    it = engine()
    with pytest.raises(NoModel):
        it.submit(order())
    it.swap(Served("1", painter))
    tickets = [it.submit(order(str(i), steps=i + 1)) for i in range(5)]
    it.close()
    assert all(ticket.future.result(0) for ticket in tickets) and not it.alive  # what waited is drawn first
    with pytest.raises(EngineClosed):
        it.submit(order())


def test_what_cannot_be_drawn_in_time_when_closing_fails(painter: Any, engine: Make) -> None:
    it = engine(painter, max_batch=1)
    first, second = held(painter, it), it.submit(order())
    it.close(0.05)
    for ticket in (first, second):
        with pytest.raises(EngineClosed):
            ticket.future.result(0)
    painter.gate.set()
    until(lambda: not it.alive)


def test_an_engine_at_fault_leaves_nobody_waiting(painter: Any, engine: Make, monkeypatch: Any) -> None:
    it = engine(painter)
    first = held(painter, it)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(it, "_clear", lambda: 1 / 0)
    painter.gate.set()
    with pytest.raises(EngineClosed):
        first.future.result(10)
    until(lambda: not it.alive)
    with pytest.raises(EngineClosed):
        it.submit(order())


def test_metrics_say_what_a_step_held(painter: Any, engine: Make) -> None:
    metrics = Metrics()
    it = engine(painter, metrics=metrics)
    it.submit(order(seeds=(1, 2), steps=3)).future.result(10)
    until(lambda: it.busy == 0)
    value = metrics.registry.get_sample_value
    assert value("atelier_batch_images_count") == 3 and value("atelier_batch_images_sum") == 6
    assert value("atelier_step_duration_seconds_count") == 3
    assert value("atelier_queue_duration_seconds_count") == 1
    assert value("atelier_images_total", {"version": "1"}) == 2
