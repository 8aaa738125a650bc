"""The fetch engine: one shard's rows through img2dataset, whatever the source does."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.contracts.recipe import Collect
from components.contracts.records import FETCHES_SCHEMA, LEDGER_SCHEMA, CollectReason
from components.data.engine import Shard
from components.data.fetching import Answer, Fetch
from components.data.guard import Refusal
from components.data.takedown import Blocklist, rule
from tests.components.data.pages import jpeg

JPEGS = [jpeg(n) for n in range(8)]
NOW = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass
class Memory:
    """A source that answers from memory, by URL."""

    answer: Callable[[str], bytes]
    final_url: str | None = None
    asked: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, url: str) -> Answer:
        with self.lock:
            self.asked.append(url)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            body = self.answer(url)
            return Answer(body, 200, 1, None, Fetch(NOW, 0.5, "192.0.2.1", self.final_url or url, "none", "p"))
        finally:
            with self.lock:
                self.at_once -= 1

    def close(self) -> None:
        pass


def shard(number: int = 8, blocked: Blocklist | None = None, **limits: object) -> Shard:
    rows = [100 + n for n in range(number)]
    urls = [f"http://h{n % 3}.example/{n}" for n in range(number)]
    captions = [f"c{n}" if n % 2 else None for n in range(number)]
    recipe = Collect.model_validate({"image_size": 64, **limits})
    return Shard("00001", rows, urls, captions, recipe, blocked or Blocklist())


def picture(url: str) -> bytes:
    return JPEGS[int(url.rpartition("/")[2]) % 8]


def test_rows_come_out_in_their_order_whatever_the_order_they_were_asked_in() -> None:
    def slow_at_first(url: str) -> bytes:
        time.sleep(0.05 if url.endswith(("/0", "/1")) else 0.0)
        return picture(url)

    one, many = shard(), shard()
    one.fetch(Memory(picture), 1)
    source = Memory(slow_at_first)
    many.fetch(source, 4)
    assert 1 < source.most_at_once <= 4
    assert one.ledger().equals(many.ledger()) and one.ledger().schema.equals(LEDGER_SCHEMA)
    assert list(one.samples()) == list(many.samples())
    assert [sample.key for sample in one.samples()] == [f"{100 + n:09d}" for n in range(8)]
    assert one.ledger()["row"].to_pylist() == one.fetches()["row"].to_pylist() == [100 + n for n in range(8)]
    assert one.fetches().schema.equals(FETCHES_SCHEMA)
    assert one.fetches()["final_url"].to_pylist() == one.ledger()["url"].to_pylist()


def test_a_sample_is_what_the_ledger_says() -> None:
    fetched = shard(encode="original")
    fetched.fetch(Memory(picture), 3)
    for sample, row in zip(fetched.samples(), fetched.ledger().to_pylist(), strict=True):
        assert hashlib.sha256(sample.picture).hexdigest() == row["sha256"] == sample.meta["sha256"]
        assert (
            (sample.meta["original_width"], sample.meta["original_height"])
            == (row["width"], row["height"])
            == (128, 96)
        )
        assert sample.meta["quality"] == row["quality"] == 90
        assert (sample.meta["caption"], row["bytes"]) == (row["caption"], len(sample.picture))


def test_refusals_of_the_source_and_of_the_decoder_are_told_apart() -> None:
    def answer(url: str) -> bytes:
        if url.endswith("/2"):
            refusal = Refusal(CollectReason.HTTP_ERROR, "HTTP status 503", 503)
            refusal.attempts, refusal.fetch = 3, Fetch(NOW, 1.0, None, None, "closed", "p")
            raise refusal
        return b"<html>" if url.endswith("/5") else picture(url)

    fetched = shard()
    fetched.fetch(Memory(answer), 2)
    rows = {row["row"]: row for row in fetched.ledger().to_pylist()}
    assert [row for row in rows if rows[row]["status"] == "failed"] == [102, 105]
    assert (rows[102]["reason"], rows[102]["http_status"], rows[102]["attempts"]) == ("http_error", 503, 3)
    assert (rows[105]["reason"], rows[105]["http_status"], rows[105]["bytes"]) == ("not_an_image", 200, 6)
    assert [f["robots"] for f in fetched.fetches().to_pylist()][2] == "closed"


@pytest.mark.parametrize(
    "error", [ValueError("a fault of ours"), OSError(28, "No space left on device"), MemoryError()]
)
def test_anything_but_a_refusal_ends_the_shard_with_that_error(error: Exception) -> None:
    def answer(url: str) -> bytes:
        if url.endswith("/3"):
            raise error
        return picture(url)

    source = Memory(answer)
    with pytest.raises(type(error)) as raised:
        shard(200).fetch(source, 2)
    assert raised.value is error
    assert len(source.asked) < 150, "the rest is not asked for"


def test_what_was_taken_down_stays_away(tmp_path: Path) -> None:
    gone = hashlib.sha256(JPEGS[6]).hexdigest()
    keys = {rule("host", "h1.example"): (), rule("sha256", gone): (), rule("url", "http://h0.example/0"): ()}
    source, fetched = Memory(picture), shard(blocked=Blocklist.add(str(tmp_path), keys))
    fetched.fetch(source, 2)
    assert set(source.asked) == {f"http://h{n % 3}.example/{n}" for n in (2, 3, 5, 6)}
    rows = fetched.ledger().to_pylist()
    away = [row for row in rows if row["reason"] == "taken_down"]
    assert [row["row"] for row in away] == [100, 101, 104, 106, 107]
    assert all(row["url"] is None and row["caption"] is None and row["sha256"] is None for row in away)
    assert [f["final_url"] for f in fetched.fetches().to_pylist() if f["row"] == 106] == [None]
    assert [sample.meta["row"] for sample in fetched.samples()] == [102, 103, 105]


def test_a_redirect_to_what_was_taken_down_is_no_way_around(tmp_path: Path) -> None:
    blocked = Blocklist.add(str(tmp_path), {rule("host", "gone.example"): ()})
    fetched = shard(2, blocked)
    fetched.fetch(Memory(picture, final_url="http://cdn.gone.example/x"), 2)
    assert fetched.ledger()["reason"].to_pylist() == ["taken_down"] * 2
