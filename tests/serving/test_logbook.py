"""The logbook: whole files, few files, nothing lost."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from components.contracts.records import LOGBOOK_SCHEMA
from serving.logbook import Entry, Logbook, image_stats, read_logbook


def entry(i: int) -> Entry:
    return Entry(f"r{i}", 200, 0.5, "k", f"prompt {i}", i, 16, 3.0, "1", None, False, "ab", [0.5] * 6)


def test_rows_come_back_in_the_schema(tmp_path: Path) -> None:
    book = Logbook(tmp_path / "logbook", "w")
    book.append(entry(1), Entry("r2", 401, 0.001, error="invalid_api_key"))
    book.flush()
    table = read_logbook(tmp_path / "logbook")
    book.close()
    assert table.schema.equals(LOGBOOK_SCHEMA)
    assert table.column("request_id").to_pylist() == ["r1", "r2"]
    assert table.column("image_stats").to_pylist() == [[0.5] * 6, None]
    assert stat.S_IMODE((tmp_path / "logbook").stat().st_mode) == 0o700


def test_rows_are_on_disk_by_themselves_within_the_flush_time(tmp_path: Path) -> None:
    book = Logbook(tmp_path, "w", flush_s=0.05)
    book.append(entry(1))
    deadline = time.monotonic() + 60
    while not read_logbook(tmp_path).num_rows:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    book.close()


def test_parts_are_rolled_and_a_running_part_stays_one_file(tmp_path: Path) -> None:
    book = Logbook(tmp_path, "w", max_rows=10, flush_s=60)
    for i in range(25):
        book.append(entry(i))
        book.flush()
    book.close()
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert sorted(read_logbook(tmp_path).column("seed").to_pylist()) == list(range(25))


def test_many_threads_and_two_writers_lose_nothing_and_readers_never_fail(tmp_path: Path) -> None:
    books = [Logbook(tmp_path, f"w{i}", max_rows=50, flush_s=0.01) for i in range(2)]

    def write(start: int) -> None:
        for i in range(start, start + 100):
            books[i % 2].append(entry(i))

    threads = [threading.Thread(target=write, args=(100 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        read_logbook(tmp_path)
    for book in books:
        book.close()
    assert sorted(read_logbook(tmp_path).column("seed").to_pylist()) == list(range(400))


def test_an_unwritable_disk_keeps_the_rows_and_says_so(tmp_path: Path) -> None:
    errors: list[int] = []
    book = Logbook(tmp_path / "l", "w", flush_s=60, on_error=lambda: errors.append(1))
    (tmp_path / "l").rmdir()
    (tmp_path / "l").write_text("a file where the folder was")
    book.append(entry(1))
    with pytest.raises(OSError):
        book.flush()
    assert book.error and errors
    (tmp_path / "l").unlink()
    book.close()
    assert read_logbook(tmp_path / "l").num_rows == 1 and book.error is None


def test_no_logbook_is_an_empty_table(tmp_path: Path) -> None:
    assert read_logbook(tmp_path / "none").num_rows == 0


def test_image_stats() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, :, 0] = 255
    assert image_stats(pixels) == pytest.approx([0.5, 0, 0, 0.5, 0, 0])
