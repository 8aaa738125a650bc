"""Erasing and expiring rows: the right ones, for good, beside running writers and readers."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.contracts.errors import InputError, RuntimeUnavailable
from components.contracts.records import LOGBOOK_SCHEMA
from serving.auth import list_keys, make_key
from serving.erasing import erase, erased_requests, expire, folder_lock, now
from serving.logbook import Entry, Logbook, read_logbook


def entry(i: int, user: str | None = None, key: str = "k1", at: datetime.datetime | None = None) -> Entry:
    return Entry(f"r{i}", 200, 0.5, key, f"prompt {i}", user=user, time=at or now())


def ids(home: Path) -> list[str]:
    return sorted(read_logbook(home / "logbook")["request_id"].to_pylist())


@pytest.fixture
def book(tmp_path: Path) -> Logbook:
    """A writer that writes when the test says so."""
    return Logbook(tmp_path / "logbook", "w", flush_s=3600, max_rows=3)


def test_a_user_is_erased_from_every_part_and_only_that_user(tmp_path: Path, book: Logbook) -> None:
    for i in range(10):  # parts of three rows: whole parts, halves, and the running one
        book.append(entry(i, ("ada", "eve")[i % 2] if i < 6 else "ada"))
        book.flush()
    assert len(list((tmp_path / "logbook").glob("*.parquet"))) == 4
    done = erase(tmp_path, user="ada", key_id="k1")
    assert done.rows == 7 and done.files == 4 and ids(tmp_path) == ["r1", "r3", "r5"]
    assert erase(tmp_path, user="ada", key_id="k1").rows == 0
    book.append(entry(20, "ada"), entry(21, "eve"))  # who comes back is written down again
    book.close()
    assert ids(tmp_path) == ["r1", "r20", "r21", "r3", "r5"]
    assert read_logbook(tmp_path / "logbook").schema.equals(LOGBOOK_SCHEMA)


def test_rows_in_a_writers_memory_do_not_come_back(tmp_path: Path, book: Logbook) -> None:
    book.append(entry(1, "ada"), entry(2, "eve"))
    book.flush()
    book.append(entry(3, "ada"))  # not on disk yet
    assert erase(tmp_path, user="ada", key_id="k1").rows == 1
    assert ids(tmp_path) == ["r2"]
    book.flush()  # writes the running part anew
    assert ids(tmp_path) == ["r2"]
    book.append(entry(4, "eve"))
    book.close()
    assert ids(tmp_path) == ["r2", "r4"]


def test_which_requests_were_erased_is_told_until_it_was_dealt_with(tmp_path: Path, book: Logbook) -> None:
    book.append(entry(1, "ada"), entry(2, "eve"), entry(3, "ada"))
    book.close()
    erase(tmp_path, user="ada", key_id="k1")
    erase(tmp_path, user="eve", key_id="k1")
    with pytest.raises(OSError), erased_requests(tmp_path):
        raise OSError("it could not be dealt with")
    with erased_requests(tmp_path) as found:
        assert found == {"r1", "r2", "r3"}
    with erased_requests(tmp_path) as found:
        assert not found


def test_users_of_one_name_belong_to_their_keys(tmp_path: Path, book: Logbook) -> None:
    make_key(tmp_path / "keys.json", "one")
    known = list_keys(tmp_path / "keys.json")[0].id
    book.append(entry(1, "1", known), entry(2, "1", "gone"), Entry("r3", 200, 0.1, None, "x", user="1"))
    book.close()
    assert erase(tmp_path, user="1", key_id="gone").rows == 1
    assert ids(tmp_path) == ["r1", "r3"]
    assert erase(tmp_path, user="1").rows == 2  # of every key, known or not, and of none


def test_a_whole_key_is_erased(tmp_path: Path, book: Logbook) -> None:
    book.append(entry(1, "a", "k1"), entry(2, None, "k1"), entry(3, "a", "k2"), Entry("r4", 401, 0.1))
    book.close()
    assert erase(tmp_path, key_id="k1").rows == 2 and ids(tmp_path) == ["r3", "r4"]


def test_nobody_and_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Nobody"):
        erase(tmp_path)
    assert erase(tmp_path, user="ada").rows == 0 and not (tmp_path / "serve.key").exists()


def test_beside_busy_writers_and_readers(tmp_path: Path) -> None:
    books = [Logbook(tmp_path / "logbook", f"w{i}", flush_s=0.01, max_rows=20) for i in range(2)]
    stop = threading.Event()
    failed: list[BaseException] = []

    def write(which: int) -> None:
        i = 0
        while not stop.is_set():
            books[which].append(entry(1000 * which + i, "eve"))
            i += 1
            time.sleep(0.002)

    def read() -> None:
        try:
            while not stop.is_set():
                read_logbook(tmp_path / "logbook")
        except BaseException as error:
            failed.append(error)

    books[0].append(*(entry(90_000 + i, "ada") for i in range(30)))
    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while sum(name.startswith("r9") and len(name) == 6 for name in ids(tmp_path)) < 30:
        assert time.monotonic() < deadline
    assert erase(tmp_path, user="ada", key_id="k1").rows == 30
    written = len(ids(tmp_path))
    while len(ids(tmp_path)) < written + 40:  # the writers went on writing their parts anew
        assert time.monotonic() < deadline
    stop.set()
    for thread in threads:
        thread.join()
    for each in books:
        each.close()
    left = read_logbook(tmp_path / "logbook")["request_id"].to_pylist()
    assert not failed and not any(name in {f"r{90_000 + i}" for i in range(30)} for name in left)
    assert len(left) == len(set(left)) > 40


def test_old_rows_expire_and_a_part_ends_with_its_day(tmp_path: Path, book: Logbook) -> None:
    today = now()
    for days in (100, 91, 89, 1):
        book.append(entry(days, at=today - datetime.timedelta(days=days)))
        book.flush()
    assert len(list((tmp_path / "logbook").glob("*.parquet"))) == 4
    assert expire(tmp_path / "logbook", 0) == 0 and len(ids(tmp_path)) == 4
    assert expire(tmp_path / "logbook", 90) == 2 and ids(tmp_path) == ["r1", "r89"]
    book.append(entry(0))
    book.close()
    assert ids(tmp_path) == ["r0", "r1", "r89"]


def test_a_running_writer_expires_what_others_left(tmp_path: Path, until: Callable[..., None]) -> None:
    old = Logbook(tmp_path / "logbook", "old", flush_s=3600)
    old.append(entry(1, at=now() - datetime.timedelta(days=40)), entry(2))  # one part over several days, as it was
    old.close()
    book = Logbook(tmp_path / "logbook", "w", flush_s=0.02, keep_days=30)
    until(lambda: ids(tmp_path) == ["r2"])
    book.close()


def test_parts_of_before_there_were_users(tmp_path: Path) -> None:
    folder = tmp_path / "logbook"
    folder.mkdir()
    old = LOGBOOK_SCHEMA.remove(LOGBOOK_SCHEMA.get_field_index("user"))
    row = {"time": now(), "request_id": "r1", "key_id": "k1", "prompt": "a star", "status": 200}
    pq.write_table(pa.Table.from_pylist([row], old), folder / "20260101T000000-x-00000.parquet")
    assert erase(tmp_path, user="ada").rows == 0 and ids(tmp_path) == ["r1"]
    assert erase(tmp_path, key_id="k1").rows == 1 and ids(tmp_path) == []


def test_what_a_killed_writer_left_half_done_goes_too(tmp_path: Path, book: Logbook) -> None:
    book.append(entry(1, "ada"))
    book.close()
    left = tmp_path / "logbook" / ".tmp-abc"
    left.write_bytes(b"half a file with prompts")
    erase(tmp_path, user="ada", key_id="k1")
    assert not left.exists()
    left.write_bytes(b"again")
    expire(tmp_path / "logbook", 0)
    assert not left.exists()


def test_a_logbook_that_another_holds_is_said(tmp_path: Path, book: Logbook, monkeypatch: pytest.MonkeyPatch) -> None:
    book.append(entry(1, "ada"))
    book.flush()
    monkeypatch.setattr("serving.erasing._LOCK_S", 0.05)
    with folder_lock(tmp_path / "logbook"):
        with pytest.raises(RuntimeUnavailable, match="locked"):
            erase(tmp_path, user="ada", key_id="k1")
        book.append(entry(2))
        with pytest.raises(RuntimeUnavailable):
            book.flush()
        assert book.error
    book.close()
    assert ids(tmp_path) == ["r1", "r2"]


def test_strangers_do_not_fill_the_disk(tmp_path: Path, book: Logbook) -> None:
    at = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    for i in range(2000):
        book.append(Entry(f"s{i}", 401, 0.001, error="invalid_api_key", time=at))
    book.append(Entry("mine", 400, 0.1, "k1", "a star", time=at), Entry("later", 401, 0.1, time=at.replace(minute=1)))
    book.close()
    found = ids(tmp_path)
    assert len(found) == 602 and {"mine", "later", "s0", "s599"} <= set(found)
