"""Who is next, and when: turns of owners, and predictions of starts and ends."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.models.stepping import Picture
from serving.prediction import predict
from serving.profiling import Profile, measure, worthwhile
from serving.queueing import FairQueue
from serving.schemas import Order
from serving.tickets import Job, Served

OWN = (8, 8)


def job(painter: Any, owner: str = "", steps: int = 1, number: int = 1, guidance: float = 1.0) -> Job:
    order = Order("p", None, tuple(range(number)), steps, guidance)
    return Job(order, Served("1", painter), owner, time.monotonic() + 60)


def always(_: Job) -> bool:
    return True


ASKED = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.integers(1, 4)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(ASKED)
def test_the_foretold_turns_are_the_turns(make_painter: Any, asked: list[tuple[str, int, int]]) -> None:
    painter, queue = make_painter(), FairQueue()
    jobs = [job(painter, *each) for each in asked]
    for each in jobs:
        queue.put(each)
    foretold = list(queue.order())
    taken = []
    while (found := queue.take(always)) is not None:
        taken.append(found)
    assert [each for each, _ in taken] == foretold and len(queue) == 0
    for each in jobs:
        assert [index for other, index in taken if other is each] == list(range(each.count))


@settings(max_examples=60, deadline=None)
@given(ASKED)
def test_owners_who_wait_get_the_same_work(make_painter: Any, asked: list[tuple[str, int, int]]) -> None:
    painter, queue = make_painter(), FairQueue()
    for each in asked:
        queue.put(job(painter, *each))
    left = {owner: sum(j.work * j.count for j in queue if j.owner == owner) for owner in "abc"}
    done, most = dict.fromkeys("abc", 0), max((j.work for j in queue), default=0)
    while (found := queue.take(always)) is not None:
        done[found[0].owner] += found[0].work
        waiting = [owner for owner in "abc" if done[owner] < left[owner]]
        if len(waiting) > 1:
            assert max(done[o] for o in waiting) - min(done[o] for o in waiting) <= most


def test_whoever_was_away_is_owed_nothing(painter: Any) -> None:
    queue = FairQueue()
    for _ in range(50):
        queue.put(job(painter, "a"))
    for _ in range(40):
        queue.take(always)
    for _ in range(10):
        queue.put(job(painter, "b"))
    owners = [found[0].owner for _ in range(10) if (found := queue.take(always))]
    assert owners.count("b") in (5, 6)


def test_what_does_not_fit_lets_others_pass(painter: Any) -> None:
    queue = FairQueue()
    big, small, other = job(painter, "a", 9), job(painter, "a", 1), job(painter, "b", 2)
    for each in (big, small, other):
        queue.put(each)
    assert queue.take(lambda j: j.steps < 9) == (small, 0)
    assert queue.take(lambda j: j.steps < 9) == (other, 0)
    assert queue.take(lambda j: j.steps < 9) is None and list(queue) == [big]
    assert queue.drop(always) == [big] and len(queue) == 0


def profile(rows: int, seconds: float = 1.0) -> Profile:
    return Profile({OWN: {1: seconds, rows: seconds}}, OWN, rows)


def test_pictures_take_the_places_of_those_that_end(painter: Any) -> None:
    jobs = [job(painter, steps=10, number=n) for n in (1, 1, 2, 1)]
    waiting = [each for each in jobs for _ in range(each.count)]
    now = 100.0
    wait = predict(waiting, [], {jobs[0].lane: profile(2)}, 16, 1.0, now)
    assert [(each.starts - now, each.ends - now, each.ahead) for each in jobs] == [
        (0, 10, 0), (0, 10, 1), (10, 20, 2), (20, 30, 3),
    ]  # fmt: skip
    assert wait == 20


def test_those_that_run_end_first_and_the_pace_counts(painter: Any) -> None:
    running, waiting = job(painter, steps=10), job(painter, steps=4)
    running.begun = 1
    assert predict([waiting], [(running, 6)], {running.lane: profile(1)}, 16, 0.5, 0.0) == 3
    assert (running.ends, waiting.starts, waiting.ends) == (3, 3, 5)


def test_guided_pictures_need_two_rows_and_pictures_are_limited(painter: Any) -> None:
    for most, guidance, expected in ((16, 3.0, 10), (16, 1.0, 0), (1, 1.0, 10)):
        first, second = job(painter, steps=10, guidance=guidance), job(painter, steps=10, guidance=guidance)
        assert predict([first, second], [], {first.lane: profile(2)}, most, 1.0, 0.0) == expected


def test_batches_take_turns_in_the_prediction(make_painter: Any) -> None:
    one, two = make_painter(), make_painter()
    first, second = job(one, steps=5), job(two, steps=5)
    predict([first, second], [], {first.lane: profile(4), second.lane: profile(4, 2.0)}, 16, 1.0, 0.0)
    assert (first.ends, second.ends) == (15, 15)


def test_rows_that_are_worth_a_step() -> None:
    assert worthwhile({1: 1.0}) == 1
    assert worthwhile({1: 1.0, 2: 1.95, 4: 3.9}) == 1  # no gain
    assert worthwhile({1: 1.0, 2: 1.1, 4: 1.3, 8: 1.9, 16: 3.7}) == 8  # hardly more rows a second in 16
    assert worthwhile({1: 1.0, 2: 1.0, 4: 1.0}) == 4


def test_seconds_between_and_beyond_what_was_measured() -> None:
    known = Profile({OWN: {1: 1.0, 2: 1.5, 8: 4.5}}, OWN, 8)
    assert [known.seconds(OWN, rows) for rows in (1, 2, 5, 8, 10)] == pytest.approx([1.0, 1.5, 3.0, 4.5, 5.5])
    assert known.seconds((16, 16), 2) == pytest.approx(6.0)  # four times the pixels
    assert known.limit(OWN) == 8 and known.limit((16, 16)) == 2 and known.limit((32, 32)) == 1
    known.shrink(OWN, 4)
    assert known.limit(OWN) == 4
    unknown = Profile({}, OWN, 8)
    assert unknown.limit(OWN) == unknown.limit((16, 16)) == 8 and unknown.seconds(OWN, 4) > 0


def test_measuring_keeps_to_its_budget(make_painter: Any) -> None:
    painter = make_painter(seconds=0.005)
    found = measure(painter, OWN, 8, 1.0)
    assert sorted(found) == [1, 2, 4, 8] and all(0.005 <= seconds < 0.1 for seconds in found.values())
    painter.seconds = 0.05
    started = time.monotonic()
    assert sorted(measure(painter, OWN, 64, 0.2)) == [1]
    assert time.monotonic() - started < 1.0
    assert all(isinstance(p, str) for p in painter.begun) and Picture("x").guidance_scale == 1


def test_measuring_stops_where_memory_does(make_painter: Any) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    class Small(make_painter):  # type: ignore[misc]
        def step(self, drawings: Any) -> None:
            if len(drawings) > 2:
                raise OutOfMemoryError
            super().step(drawings)

    assert sorted(measure(Small(), OWN, 16, 1.0)) == [1, 2]
    broken = make_painter()
    broken.begin = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        measure(broken, OWN, 16, 1.0)
