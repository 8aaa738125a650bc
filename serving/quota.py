"""How much a key may ask: requests a minute, as a token bucket, and pictures a day, over all replicas together.

The counters of a key are one small file in a folder that the replicas share, changed under a lock of the operating
system (flock). So the limits hold exactly, however many replicas there are, as long as that file system's locks hold
between machines (local disks, NFSv4 and CephFS do) and their clocks agree. A replica that cannot reach the file counts
for itself until it can: then a key has at most its limits once for every such replica.

The bucket holds a minute's requests and fills evenly: a key that was silent may spend all of it at once, so that any
minute sees less than twice the rate. A day is one of UTC.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from serving.auth import Key
from serving.schemas import ApiError

_log = logging.getLogger("ray.serve")
_DAY = 86_400
_SIZE = 256  # bytes of a counter file: it is written in one piece, so a kill leaves the old or the new one
_LOCK_S = 2.0  # how long a lock may take before this replica counts alone
_ALONE = 10_000  # keys whose counters are held while the files cannot be had
_T = TypeVar("_T")


@dataclass
class Counters:
    """Of one key: requests left in its bucket as of ``stamp`` (seconds since 1970), and the day's pictures."""

    tokens: float
    stamp: float
    day: int  # days since 1970
    pictures: int = 0

    def bring_to(self, now: float, rate: int) -> None:
        """Fill the bucket up to ``now``, and begin a new day where there is one."""
        passed = max(0.0, now - self.stamp)  # another machine's clock may be ahead
        self.tokens = min(float(rate), max(0.0, self.tokens) + passed * rate / 60)
        self.stamp = now
        if self.day != (today := int(now // _DAY)):
            self.day, self.pictures = today, 0


@dataclass(frozen=True)
class Standing:
    """What a key has left: ``remaining`` of ``limit`` requests, all of them again in ``reset_s`` seconds."""

    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> dict[str, str]:
        """As OpenAI's API names them."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_s:.3f}s",
        }


class Meter:
    """Counts what keys ask for, and refuses what is too much. May be asked from several threads.

    Args:
        folder: of the counters, shared by all replicas.
        rate: requests a minute of a key that has none of its own. quota: the same of pictures a day. 0: no limit.
        now: the clock, in seconds since 1970.
    """

    def __init__(self, folder: Path, *, rate: int, quota: int, now: Callable[[], float] = time.time) -> None:
        self._folder, self._rate, self._quota, self._now = folder, rate, quota, now
        self._lock = threading.Lock()
        self._alone: OrderedDict[str, Counters] = OrderedDict()
        self.error: str | None = None  # why this replica counts alone; None while it does not

    def admit(self, key: Key | None) -> Standing | None:
        """Take one request from the key's bucket. None where nothing is counted.

        Raises:
            ApiError: 429; the bucket is empty, with the seconds until it is not.
        """
        if key is None or not (rate := self._rate if key.rate is None else key.rate):
            return None

        def take(counters: Counters) -> Standing | float:
            if counters.tokens < 1:
                return (1 - counters.tokens) * 60 / rate
            counters.tokens -= 1
            return Standing(rate, int(counters.tokens), (rate - counters.tokens) * 60 / rate)

        found = self._change(key, take)
        if isinstance(found, Standing):
            return found
        wait = math.ceil(found)
        raise ApiError(
            429,
            "rate_limit_exceeded",
            f"This key may send {rate} requests a minute. Try again in {wait} s.",
            retry_after=wait,
        )

    def charge(self, key: Key | None, pictures: int) -> None:
        """Take ``pictures`` from the key's quota of today.

        Raises:
            ApiError: 429; fewer are left, with the seconds until the next day begins.
        """
        if key is None or not (quota := self._quota if key.quota is None else key.quota):
            return

        def take(counters: Counters) -> int | None:
            if counters.pictures + pictures > quota:
                return max(0, quota - counters.pictures)
            counters.pictures += pictures
            return None

        left = self._change(key, take)
        if left is None:
            return
        wait = _DAY - int(self._now() % _DAY)
        raise ApiError(
            429,
            "insufficient_quota",
            f"This key may ask for {quota} pictures a day; until midnight UTC {left} are left, and {pictures} were "
            "asked for.",
            retry_after=wait,
        )

    def refund(self, key: Key | None, pictures: int) -> None:
        """Give back what :meth:`charge` took for pictures that were not drawn."""
        if key is None or not pictures or not (self._quota if key.quota is None else key.quota):
            return

        def give(counters: Counters) -> None:
            counters.pictures = max(0, counters.pictures - pictures)

        self._change(key, give)

    def _change(self, key: Key, change: Callable[[Counters], _T]) -> _T:
        rate = self._rate if key.rate is None else key.rate
        with self._lock:  # also one lock file a process at a time
            try:
                with _counters(self._folder, key.id, rate, self._now()) as counters:
                    found = change(counters)
            except OSError as error:
                if self.error is None:
                    _log.error("The counters of the keys cannot be used, this replica counts alone. %s", error)
                self.error = str(error)
                counters = self._alone.setdefault(key.id, Counters(float(rate), self._now(), 0))
                counters.bring_to(self._now(), rate)
                self._alone.move_to_end(key.id)
                if len(self._alone) > _ALONE:
                    self._alone.popitem(last=False)
                return change(counters)
            self.error = None
            self._alone.clear()
            return found


def used_today(folder: Path, key_id: str) -> int:
    """Pictures that the key was charged for today (UTC)."""
    try:
        found = _parse((folder / key_id).read_bytes())
    except FileNotFoundError:
        return 0
    return found.pictures if found and found.day == int(time.time() // _DAY) else 0


def drop_counters(folder: Path, key_id: str) -> None:
    """Remove the counters of a key that is no more."""
    (folder / key_id).unlink(missing_ok=True)


@contextmanager
def _counters(folder: Path, key_id: str, rate: int, now: float) -> Iterator[Counters]:
    """The key's counters brought to ``now``, under their lock; written when the block ends."""
    try:
        file = os.open(folder / key_id, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(folder / key_id, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _hold(file)
        data = os.pread(file, _SIZE, 0)
        found = _parse(data)
        if data and found is None:
            _log.error("The counters of key %s were unreadable and begin anew.", key_id)
        counters = found or Counters(float(rate), now, int(now // _DAY))
        counters.bring_to(now, rate)
        yield counters
        os.pwrite(file, json.dumps(asdict(counters)).encode().ljust(_SIZE), 0)
    finally:
        os.close(file)  # and lets the lock go


def _hold(file: int) -> None:
    deadline = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the lock was not to be had in {_LOCK_S:.0f} s") from None
            time.sleep(0.0005)


def _parse(data: bytes) -> Counters | None:
    try:
        found = Counters(**json.loads(data))
        return Counters(float(found.tokens), float(found.stamp), int(found.day), int(found.pictures))
    except (ValueError, TypeError):
        return None
