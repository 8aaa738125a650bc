"""Whose turn it is among the hosts of a shard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data.turns import Turns


def urls(hosts: str) -> list[str]:
    return [f"http://{host}.example/{n}" for n, host in enumerate(hosts)]


def test_with_one_host_it_is_the_order_of_the_list() -> None:
    turns = Turns(urls("aaaa"))
    assert [turns.take() for _ in range(4)] == [0, 1, 2, 3]


def test_hosts_take_turns() -> None:
    turns = Turns(urls("aaabbc"))
    assert [turns.take() for _ in range(6)] == [0, 3, 5, 1, 4, 2]


def test_threads_that_are_free_keep_to_the_hosts_that_answer() -> None:
    turns = Turns(urls("s" * 100 + "f" * 100))
    under_way = [turns.take() for _ in range(8)]
    assert sum(row < 100 for row in under_way) == 4
    fast = [row for row in under_way if row >= 100]
    taken = []
    while fast:
        turns.done(fast.pop())
        taken.append(turns.take())
        if taken[-1] >= 100:
            fast.append(taken[-1])
    assert [row for row in taken if row >= 100] == list(range(104, 200))
    assert all(row >= 100 for row in taken[:96])  # the slow host got no more threads while the other had rows


def test_a_url_without_a_host_is_dealt_out_too() -> None:
    turns = Turns(["", "http://[broken", "no url", "file:///x", "HTTP://U:P@A.example/1", "http://a.example/2"])
    assert sorted(turns.take() for _ in range(6)) == list(range(6))
    with pytest.raises(IndexError):
        turns.take()


@given(st.text("abcd", max_size=40), st.lists(st.booleans(), max_size=80))
def test_every_row_is_taken_once(hosts: str, ends: list[bool]) -> None:
    turns = Turns(urls(hosts))
    taken: list[int] = []
    under_way: list[int] = []
    for ended in ends:
        if ended and under_way:
            turns.done(under_way.pop(0))
        elif len(taken) < len(hosts):
            taken.append(turns.take())
            under_way.append(taken[-1])
    taken += [turns.take() for _ in range(len(hosts) - len(taken))]
    assert sorted(taken) == list(range(len(hosts)))
