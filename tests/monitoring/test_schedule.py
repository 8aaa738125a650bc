"""The schedule under a clock that moves only when it is waited for."""

from __future__ import annotations

import datetime
import threading

import pytest

from components.contracts.errors import DataError, InputError
from monitoring.schedule import next_time, run_on_schedule

MONDAY = datetime.datetime(2026, 5, 4, 2, 30, tzinfo=datetime.UTC)


class Clock(threading.Event):
    """An event whose ``wait`` passes time instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.time = MONDAY

    def now(self) -> datetime.datetime:
        return self.time

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None and 0 < timeout <= 60
        self.time += datetime.timedelta(seconds=timeout)
        return self.is_set()


def test_runs_at_the_times_of_the_expression_until_stopped() -> None:
    clock, ran = Clock(), []

    def job() -> None:
        ran.append(clock.now())
        if len(ran) == 3:
            clock.set()

    run_on_schedule("0 3 * * *", job, clock, now=clock.now)
    assert ran == [datetime.datetime(2026, 5, day, 3, tzinfo=datetime.UTC) for day in (4, 5, 6)]


def test_a_failure_is_reported_and_the_schedule_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    clock, ran = Clock(), []

    def job() -> None:
        ran.append(clock.now())
        if len(ran) == 1:
            raise DataError("the collection is empty", remedy="look at the ledger")
        if len(ran) == 2:
            raise ZeroDivisionError("a bug")
        clock.set()

    run_on_schedule("*/10 * * * *", job, clock, now=clock.now)
    assert [at.minute for at in ran] == [40, 50, 0]
    said = capsys.readouterr().err
    assert "next run at 2026-05-04 02:40 UTC" in said
    assert "the collection is empty. Remedy: look at the ledger." in said
    assert "ZeroDivisionError: a bug" in said


def test_times_that_pass_while_a_job_runs_are_left_out() -> None:
    clock, ran = Clock(), []

    def job() -> None:
        ran.append(clock.now())
        clock.time += datetime.timedelta(hours=2, minutes=5)
        if len(ran) == 2:
            clock.set()

    run_on_schedule("0 * * * *", job, clock, now=clock.now)
    assert [at.hour for at in ran] == [3, 6]


def test_stopping_while_waiting_runs_nothing() -> None:
    clock = Clock()

    def stop_later() -> datetime.datetime:
        if clock.time > MONDAY + datetime.timedelta(minutes=5):
            clock.set()
        return clock.time

    run_on_schedule("0 3 * * *", lambda: pytest.fail("ran"), clock, now=stop_later)
    assert clock.time < MONDAY + datetime.timedelta(minutes=10)


@pytest.mark.parametrize(
    "cron", ["", "daily", "0 3 * *", "0 25 * * *", "x * * * *", "0 3 * * * *", "0 0 31 2 *", "@never"]
)
def test_a_wrong_expression_is_refused_with_an_example(cron: str) -> None:
    with pytest.raises(InputError, match="five cron fields"):
        run_on_schedule(cron, lambda: pytest.fail("ran"), threading.Event(), now=lambda: MONDAY)


def test_aliases_are_understood() -> None:
    assert next_time("@daily", MONDAY) == datetime.datetime(2026, 5, 5, tzinfo=datetime.UTC)
