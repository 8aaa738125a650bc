"""Whose turn it is: the rows of a shard, dealt out so that one slow host does not hold the others' rows."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit


class Turns:
    """Rows that wait, by host. The next row is always of the host with the fewest rows under way.

    Hosts with as many under way take turns, and a host's own rows go in the order of the list. So while a host
    does not answer, the threads that are free keep to the others; with one host it is the list's order.

    Args:
        urls: of the rows; position ``i`` is row ``i`` here.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._hosts = [_host(url) for url in urls]
        self._waiting: dict[str, deque[int]] = {}
        for position, host in enumerate(self._hosts):
            self._waiting.setdefault(host, deque()).append(position)
        self._under_way = dict.fromkeys(self._waiting, 0)
        self._count = itertools.count()
        self._heap = [(0, next(self._count), host) for host in self._waiting]

    def take(self) -> int:
        """The position whose turn it is.

        Raises:
            IndexError: all were taken.
        """
        with self._lock:
            while True:
                under_way, _, host = heapq.heappop(self._heap)
                if under_way == self._under_way[host] and (rows := self._waiting[host]):  # else an old entry
                    position = rows.popleft()
                    self._change(host, 1)
                    return position

    def done(self, position: int) -> None:
        """The row at ``position`` is no longer under way."""
        with self._lock:
            self._change(self._hosts[position], -1)

    def _change(self, host: str, step: int) -> None:
        self._under_way[host] += step
        if self._waiting[host]:
            heapq.heappush(self._heap, (self._under_way[host], next(self._count), host))


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:  # of no host that could be slow: the fetcher refuses it at once
        return ""
