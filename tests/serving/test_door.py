"""Load shedding in the proxy, over a replica with a queue whose places come free by a clock of the test's."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.door import PATH, PLACE, PLACES, TURNED_AWAY, Door

PLACE_S = 0.1


class Replica:
    """Takes one request every ``PLACE_S`` seconds once its queue of ``most`` is full."""

    def __init__(self, most: int = 4, place_s: float = PLACE_S) -> None:
        self.most, self.place_s = most, place_s
        self.now, self.queue, self.free_at = 0.0, 0, 0.0
        self.asked: list[tuple[float, bool, str | None]] = []  # when, whether it was taken, what the door said

    def advance(self, to: float) -> None:
        self.now = to
        while self.queue and self.free_at <= to:
            self.queue, self.free_at = self.queue - 1, self.free_at + self.place_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        taken = self.queue < self.most
        self.asked.append((self.now, taken, headers.get(TURNED_AWAY)))
        if taken:
            if not self.queue:
                self.free_at = self.now + self.place_s
            self.queue += 1
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"drawn")]})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        full = [(b"retry-after", b"1"), (b"x-request-id", b"first"), (PLACE.encode(), str(self.place_s).encode())]
        await send({"type": "http.response.start", "status": 429, "headers": full})
        await send({"type": "http.response.body", "body": b'{"error"', "more_body": True})
        await send({"type": "http.response.body", "body": b": 1}"})


def flood(replica: Replica, every: float, seconds: float, **sent: Any) -> list[httpx.Response]:
    """Answers to a request every ``every`` seconds, for so long."""
    door = Door(replica, now=lambda: replica.now)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=door)
        found = []
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for i in range(int(seconds / every)):
                replica.advance(i * every)
                found.append(await client.post(PATH, json={}, **sent))
        return found

    return asyncio.run(ask())


def test_a_full_queue_refuses_at_the_door_and_stays_full() -> None:
    replica = Replica()
    answers = flood(replica, PLACE_S / 20, 20.0)
    taken = sum(ok for _, ok, _ in replica.asked)
    assert taken >= 0.95 * 20.0 / PLACE_S  # as many as could be drawn
    assert len(replica.asked) <= 1.5 * taken  # though twenty times as many came
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) == len(answers) - taken
    assert all(answer.json() == {"error": 1} and answer.headers["retry-after"] == "1" for answer in refused)
    assert not any(PLACE in answer.headers for answer in answers)
    at_the_door = [answer for answer in refused if answer.headers["x-request-id"] != "first"]
    assert len({answer.headers["x-request-id"] for answer in at_the_door}) == len(at_the_door) > 100


def test_what_was_turned_away_is_told_to_the_replica() -> None:
    replica = Replica()
    answers = flood(replica, PLACE_S / 20, 5.0, headers={TURNED_AWAY: "1000000"})  # a client's word is not taken
    told = sum(int(count or 0) for _, _, count in replica.asked)
    at_the_door = len(answers) - len(replica.asked)
    assert at_the_door - 20 <= told <= at_the_door


def test_everybody_is_let_through_when_the_flood_is_over() -> None:
    replica = Replica()
    flooded = Door(replica, now=lambda: replica.now)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=flooded), base_url="http://x") as client:
            for _ in range(10):  # at one moment
                await client.post(PATH, json={})
            assert len(replica.asked) == replica.most + 1
            replica.advance(PLACES * PLACE_S)
            for _ in range(replica.most):
                assert (await client.post(PATH, json={})).status_code == 200

    asyncio.run(ask())


def test_other_requests_and_other_refusals_pass() -> None:
    calls = []

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["path"])
        await send({"type": "http.response.start", "status": 429, "headers": []})  # a key's rate, not the queue
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=Door(limited)), base_url="http://x") as client:
            for _ in range(5):
                await client.post(PATH, json={})
                await client.get("/healthz")

    asyncio.run(ask())
    assert len(calls) == 10

    replica = Replica(most=0)
    door = Door(replica, now=lambda: replica.now)

    async def look() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door), base_url="http://x") as client:
            for _ in range(5):
                await client.post(PATH, json={})
            assert len(replica.asked) == 1
            await client.get("/healthz")
            assert len(replica.asked) == 2

    asyncio.run(look())


@settings(deadline=None, max_examples=30)
@given(
    most=st.integers(2, 64),
    place_s=st.floats(0.01, 1.0),
    told=st.floats(0.3, 3.0),
    load=st.floats(1.5, 20.0),
)
def test_pictures_are_drawn_without_a_pause_also_where_the_prediction_is_wrong(
    most: int, place_s: float, told: float, load: float
) -> None:
    """The replica is off by a factor; still nearly as many are taken as it could draw, unless it thinks it is slower
    than it is and has hardly a queue."""
    replica = Replica(most=most, place_s=place_s)
    real = replica.advance

    def advance(to: float) -> None:
        replica.place_s = place_s
        real(to)
        replica.place_s = place_s * told

    replica.advance = advance  # type: ignore[method-assign]
    seconds = 100 * place_s
    flood(replica, place_s / load, seconds)
    taken = sum(ok for _, ok, _ in replica.asked)
    floor = 0.9 if told <= 1.2 or most >= PLACES * told else 0.25
    assert taken >= floor * 100
