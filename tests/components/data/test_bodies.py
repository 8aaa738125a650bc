"""The memory that bodies of one task may take."""

from __future__ import annotations

import gc
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.recipe import Collect
from components.data.bodies import SMALL, Budget, Lease
from components.data.fetching import Fetcher
from components.data.guard import Guard, Refusal
from tests.components.data.faulty_server import Server, ok


def test_what_does_not_fit_waits_until_something_is_released() -> None:
    budget = Budget(10)
    first, second = budget.reserve(6), budget.reserve(4)
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(budget.reserve, 5)
        assert not wait([third], timeout=0.05).done
        second.release()
        assert not wait([third], timeout=0.05).done  # 4 are free
        first.shrink(5)
        assert isinstance(third.result(timeout=5), Lease)


def test_a_lease_is_released_once_and_at_the_latest_as_garbage() -> None:
    budget = Budget(10)
    lease = budget.reserve(10)
    lease.release()
    lease.release()
    assert not lease
    budget.reserve(10)  # its lease is garbage at once
    gc.collect()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(budget.reserve, 10).result(timeout=5)


def test_more_than_the_budget_is_taken_as_all_of_it() -> None:
    budget = Budget(10)
    whole = budget.reserve(100)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(budget.reserve, 1)
        assert not wait([waiting], timeout=0.05).done
        whole.release()
        assert waiting.result(timeout=5)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_the_sum_of_leases_never_passes_the_budget(sizes: list[int]) -> None:
    budget, held, most, lock = Budget(50), 0, 0, threading.Lock()

    def use(size: int) -> None:
        nonlocal held, most
        lease = budget.reserve(size)
        with lock:
            held += size
            most = max(most, held)
        with lock:
            held -= size
        lease.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, sizes))
    assert most <= 50 and held == 0


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_counts_as_long_as_its_answer_is_kept(announced: bool) -> None:
    """Two bodies of 2 MiB with room for one: the second comes when the first answer is let go."""
    body = bytes(2 << 20)
    plain = ok(body)

    def endless(connection: socket.socket, _number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
        raise ConnectionAbortedError

    with Server({"/x": plain if announced else endless, "/small": ok(bytes(SMALL))}) as server:
        limits = Collect(timeout_s=20, max_bytes=2 << 20)
        client = Fetcher(limits, Guard((server.host,)))
        client._client._budget = Budget(2 << 20)
        url = f"http://{server.host}/x"
        first = client.fetch(url)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(client.fetch, url)
            assert not wait([second], timeout=0.3).done
            assert len(client.fetch(f"http://{server.host}/small").body) == SMALL  # small ones pass
            started = time.monotonic()
            first.lease.release()
            assert second.result(timeout=10).body == body
            assert time.monotonic() - started < 5
        server.shutdown()


@given(size=st.sampled_from([0, 1, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL]), shape=st.sampled_from(["said", "to end"]))
@settings(max_examples=12, deadline=None)
def test_bodies_of_any_size_come_byte_for_byte(size: int, shape: str) -> None:
    body = random.Random(size).randbytes(size)

    def to_end(connection: socket.socket, _number: int) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + body)
        raise ConnectionAbortedError

    with Server({"/x": ok(body) if shape == "said" else to_end}) as server:
        for cap, complete in ((max(size, 1), True), (size - 1, False)):
            if cap > 0:
                client = Fetcher(Collect(timeout_s=20, max_bytes=cap), Guard((server.host,)))
                if complete:
                    assert client.fetch(f"http://{server.host}/x").body == body
                else:
                    with pytest.raises(Refusal, match="bytes"):
                        client.fetch(f"http://{server.host}/x")
                client.close()
        server.shutdown()
