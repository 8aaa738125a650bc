"""Rates and quotas: exact over replicas, refilled in time, and there even when the disk is not."""

from __future__ import annotations

import multiprocessing
import stat
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.auth import Key
from serving.quota import Meter, drop_counters, used_today
from serving.schemas import ApiError

NOON = 20_000 * 86_400 + 43_200.0  # of some day


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key(name: str = "k", rate: int | None = None, quota: int | None = None) -> Key:
    return Key(name, name, "0" * 64, 0, rate=rate, quota=quota)


def refused(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as error:
        call()
    assert error.value.status == 429
    return error.value


def test_a_bucket_empties_and_fills(tmp_path: Path, clock: Clock) -> None:
    meter = Meter(tmp_path, rate=60, quota=0, now=clock)
    left = [meter.admit(key()) for _ in range(60)]
    assert [s.remaining for s in left if s] == list(range(59, -1, -1))
    error = refused(lambda: meter.admit(key()))
    assert (error.code, error.retry_after) == ("rate_limit_exceeded", 1) and "60 requests a minute" in error.message
    clock.now += 2.0
    assert meter.admit(key()) and meter.admit(key())
    refused(lambda: meter.admit(key()))
    standing = meter.admit(key("other"))
    assert standing and standing.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1.000s",
    }


def test_the_time_that_is_told_is_enough_and_a_slow_rate_is_kept(tmp_path: Path, clock: Clock) -> None:
    meter = Meter(tmp_path, rate=1, quota=0, now=clock)
    meter.admit(key())
    error = refused(lambda: meter.admit(key()))
    assert error.retry_after == 60
    clock.now += 59
    refused(lambda: meter.admit(key()))
    clock.now += 1
    assert meter.admit(key())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.lists(st.floats(0, 30), min_size=1, max_size=80))
def test_no_minute_sees_twice_the_rate(
    tmp_path_factory: pytest.TempPathFactory, rate: int, pauses: list[float]
) -> None:
    clock = Clock()
    meter = Meter(tmp_path_factory.mktemp("q"), rate=rate, quota=0, now=clock)
    admitted = []
    for pause in pauses:
        clock.now += pause
        try:
            meter.admit(key())
            admitted.append(clock.now)
        except ApiError:
            continue
    for start in admitted:
        assert sum(start <= at < start + 60 for at in admitted) <= 2 * rate


def test_a_quota_is_spent_given_back_and_new_each_day(tmp_path: Path, clock: Clock) -> None:
    meter = Meter(tmp_path, rate=0, quota=10, now=clock)
    meter.charge(key(), 8)
    error = refused(lambda: meter.charge(key(), 3))
    assert error.code == "insufficient_quota" and "2 are left" in error.message
    assert error.retry_after == 43_200  # to midnight
    meter.charge(key(), 2)
    refused(lambda: meter.charge(key(), 1))
    meter.refund(key(), 4)
    meter.charge(key(), 4)
    clock.now += 43_200
    meter.charge(key(), 10)
    meter.refund(key(), 99)  # never below nothing
    meter.charge(key(), 10)
    refused(lambda: meter.charge(key(), 1))


def test_a_key_has_its_own_limits_or_none(tmp_path: Path, clock: Clock) -> None:
    meter = Meter(tmp_path, rate=1, quota=1, now=clock)
    free, tight = key("free", rate=0, quota=0), key("tight", rate=2, quota=2)
    for _ in range(50):
        assert meter.admit(free) is None and meter.admit(None) is None
        meter.charge(free, 5)
        meter.charge(None, 5)
    meter.admit(tight)
    meter.admit(tight)
    refused(lambda: meter.admit(tight))
    meter.charge(tight, 2)
    refused(lambda: meter.charge(tight, 1))


def test_a_rate_that_is_lowered_holds_at_once(tmp_path: Path, clock: Clock) -> None:
    meter = Meter(tmp_path, rate=100, quota=0, now=clock)
    meter.admit(key())
    assert meter.admit(key(rate=2))
    meter.admit(key(rate=2))
    refused(lambda: meter.admit(key(rate=2)))


def _spend(folder: str, times: int, both: Barrier, told: multiprocessing.SimpleQueue[tuple[int, int]]) -> None:
    meter, mine = Meter(Path(folder), rate=150, quota=100), key()
    admitted = charged = 0
    both.wait(60)
    for _ in range(times):
        try:
            meter.admit(mine)
            admitted += 1
        except ApiError:
            pass
        try:
            meter.charge(mine, 1)
            charged += 1
        except ApiError:
            pass
    assert meter.error is None
    told.put((admitted, charged))


def test_two_replicas_share_one_quota_exactly(tmp_path: Path) -> None:
    method = multiprocessing.get_context("fork")
    told: multiprocessing.SimpleQueue[tuple[int, int]] = method.SimpleQueue()
    both = method.Barrier(2)  # neither has spent everything before the other begins
    replicas = [method.Process(target=_spend, args=(str(tmp_path / "quota"), 400, both, told)) for _ in range(2)]
    for replica in replicas:
        replica.start()
    spent = [told.get() for _ in replicas]
    for replica in replicas:
        replica.join(30)
        assert replica.exitcode == 0
    assert sum(charged for _, charged in spent) == 100
    assert 150 <= sum(admitted for admitted, _ in spent) <= 150 + 2.5 * 30  # what filled the bucket while they ran


def test_without_the_disk_this_replica_counts_alone_and_says_so(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "quota"
    folder.write_text("a file where the folder should be")
    meter = Meter(folder, rate=2, quota=3, now=clock)
    meter.admit(key())
    meter.admit(key())
    refused(lambda: meter.admit(key()))
    meter.charge(key(), 3)
    refused(lambda: meter.charge(key(), 1))
    assert meter.error
    folder.unlink()
    assert meter.admit(key()) and meter.error is None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("junk", [b"\x00" * 10, b"{}", b'{"tokens": "x", "stamp": 1, "day": 1, "pictures": 1}', b"[1]"])
def test_damaged_counters_begin_anew(tmp_path: Path, clock: Clock, junk: bytes) -> None:
    (tmp_path / "k").write_bytes(junk)
    meter = Meter(tmp_path, rate=5, quota=5, now=clock)
    assert meter.admit(key())
    meter.charge(key(), 5)
    refused(lambda: meter.charge(key(), 1))


def test_what_was_used_today(tmp_path: Path) -> None:
    meter = Meter(tmp_path, rate=5, quota=5)
    assert used_today(tmp_path, "k") == 0
    meter.charge(key(), 3)
    assert used_today(tmp_path, "k") == 3
    drop_counters(tmp_path, "k")
    drop_counters(tmp_path, "k")
    assert used_today(tmp_path, "k") == 0
