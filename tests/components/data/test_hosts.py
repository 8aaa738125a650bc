"""Turns at a host: how many, how far apart, pauses, and hosts that are given up."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import pytest

from components.contracts.recipe import Collect
from components.contracts.records import CollectReason
from components.data import hosts as module
from components.data.guard import Refusal, Target, target_of
from components.data.hosts import GIVE_UP_AFTER, Hosts

A, B = target_of("http://a.example/x"), target_of("http://b.example/y")


def gate(tasks: int = 1, **limits: object) -> Hosts:
    return Hosts(Collect.model_validate(limits), tasks)


class Door:
    """Counts who is inside, and notes when each came in."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.times: list[float] = []
        self._lock = Lock()

    def visit(self, hosts: Hosts, target: Target, stay_s: float = 0.0) -> None:
        with hosts.turn(target):
            with self._lock:
                self.times.append(time.monotonic())
                self.inside += 1
                self.most = max(self.most, self.inside)
            time.sleep(stay_s)
            with self._lock:
                self.inside -= 1

    def keep_apart(self, seconds: float, since: float) -> bool:
        """True if no visit came before its time, as counted from before the first."""
        return all(time - since >= n * seconds for n, time in enumerate(sorted(self.times)))


def visits(door: Door, hosts: Hosts, count: int, target: Target = A, stay_s: float = 0.0) -> None:
    with ThreadPoolExecutor(count) as pool:
        for visit in [pool.submit(door.visit, hosts, target, stay_s) for _ in range(count)]:
            visit.result()


@pytest.mark.parametrize(("per_host", "tasks", "at_once"), [(4, 1, 4), (4, 2, 2), (5, 2, 2), (1, 8, 1)])
def test_a_task_keeps_to_its_share_of_requests_at_once(per_host: int, tasks: int, at_once: int) -> None:
    door, hosts = Door(), gate(tasks, per_host=per_host)
    visits(door, hosts, 12, stay_s=0.03)
    assert (door.most, len(door.times)) == (at_once, 12)


def test_requests_to_one_host_keep_their_distance_and_to_others_do_not_wait() -> None:
    door, other, hosts, began = Door(), Door(), gate(tasks=2, crawl_delay_s=0.05), time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        waits = [pool.submit(door.visit, hosts, A) for _ in range(4)]
        pool.submit(other.visit, hosts, B).result()
        for wait in waits:
            wait.result()
    assert door.keep_apart(0.1, began)  # two tasks: twice the delay each
    assert other.times[0] < max(door.times)


def test_robots_can_slow_down_but_not_without_bound() -> None:
    door, hosts = Door(), gate(crawl_delay_s=0.01, max_crawl_delay_s=1.0)
    hosts.slow_down(A, 0.08)
    hosts.slow_down(A, 0.02)
    began = time.monotonic()
    visits(door, hosts, 3)
    assert door.keep_apart(0.08, began)
    with pytest.raises(Refusal) as refusal:
        hosts.slow_down(A, 1.5)
    assert refusal.value.reason is CollectReason.CRAWL_DELAY


def test_http_and_https_are_one_host_another_port_is_another() -> None:
    door, hosts = Door(), gate(per_host=1)
    with ThreadPoolExecutor(1) as pool, hosts.turn(A):
        secure = pool.submit(door.visit, hosts, target_of("https://a.example/"))
        door.visit(hosts, target_of("http://a.example:8080/"))
        assert len(door.times) == 1 and not secure.done()


def test_a_pause_holds_for_every_thread_and_those_already_waiting() -> None:
    door, hosts = Door(), gate(per_host=1)
    with ThreadPoolExecutor(4) as pool:
        with hosts.turn(A):
            waiting = [pool.submit(door.visit, hosts, A) for _ in range(4)]
            hosts.pause(A, 0.2)
            paused = time.monotonic()
        for wait in waiting:
            wait.result()
    assert min(door.times) >= paused + 0.19


def test_a_pause_that_is_too_long_is_not_waited_for() -> None:
    hosts = gate(max_retry_after_s=10.0)
    hosts.pause(A, 3600)
    with pytest.raises(Refusal, match="pause of 3600 s") as refusal, hosts.turn(A):
        pytest.fail("must not come to its turn")
    assert (refusal.value.reason, refusal.value.final) == (CollectReason.HTTP_ERROR, True)
    with hosts.turn(B):  # others are open
        pass


def failure() -> Refusal:
    return Refusal(CollectReason.TIMEOUT, "no complete answer in time")


def test_an_origin_that_never_answers_is_given_up_until_a_probe_finds_it_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.1)
    hosts = gate()
    for _ in range(GIVE_UP_AFTER):
        hosts.check(A)
        hosts.failed(A, failure())
    with pytest.raises(Refusal, match="not asked") as refusal:
        hosts.check(A)
    assert (refusal.value.reason, refusal.value.final) == (CollectReason.TIMEOUT, True)
    hosts.check(B)
    time.sleep(0.11)
    hosts.check(A)  # the probe
    with pytest.raises(Refusal):
        hosts.check(A)  # and no second one
    hosts.answered(A)
    hosts.check(A)
    hosts.check(A)


def test_any_answer_in_between_keeps_an_origin() -> None:
    hosts = gate()
    for _ in range(5):
        for _ in range(GIVE_UP_AFTER - 1):
            hosts.failed(A, failure())
        hosts.answered(A)
    hosts.check(A)


def test_an_origin_without_valid_tls_is_given_up_at_once_and_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.0)
    hosts = gate()
    hosts.give_up(A, Refusal(CollectReason.TLS, "the certificate is not accepted"))
    for _ in range(2):
        with pytest.raises(Refusal) as refusal:
            hosts.check(A)
        assert refusal.value.reason is CollectReason.TLS


def test_hosts_that_nothing_is_known_of_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HOSTS", 10)
    hosts = gate(max_retry_after_s=10.0)
    hosts.pause(A, 3600)
    with hosts.turn(B):
        for number in range(100):
            with hosts.turn(target_of(f"http://{number}.example/")):
                assert len(hosts._hosts) <= 11
    with pytest.raises(Refusal, match="pause"), hosts.turn(A):  # what matters is not
        pytest.fail("must not come to its turn")
