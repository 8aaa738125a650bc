"""What the logbook keeps of a person: redacted prompts, names that say nothing, and neither where the key opted out."""

from __future__ import annotations

import random
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import InputError
from serving.logbook import Entry, Logbook, read_logbook
from serving.privacy import Privacy
from serving.secret import derived_key

PERSONAL = (
    "ada@example.org",
    "+44 20 7946 0018",
    "4111 1111 1111 1111",
    "@ada_lovelace",
    "DE89 3704 0044 0532 0130 00",
)


@pytest.mark.parametrize("what", PERSONAL)
def test_personal_data_is_never_on_disk(tmp_path: Path, what: str) -> None:
    book = Logbook(tmp_path / "logbook", "w", flush_s=60)
    book.append(Entry("r1", 200, 0.1, "k", f"a portrait, write {what} on it", user=what))
    book.close()
    row = read_logbook(tmp_path / "logbook").to_pylist()[0]
    assert row["prompt"].startswith("a portrait, write [") and what not in str(row)
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert what.encode() not in files and what.replace(" ", "").encode() not in files


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.sampled_from(PERSONAL), st.text(max_size=40))
def test_whatever_stands_around_it(
    tmp_path_factory: pytest.TempPathFactory, before: str, what: str, after: str
) -> None:
    privacy = Privacy(tmp_path_factory.getbasetemp())
    kept = privacy.prompt(f"{before} {what} {after}")
    assert kept is not None
    if what == "ada@example.org":  # the others may become something else beside digits
        assert "ada@example" not in kept


def test_other_prompts_stay_as_they_are_also_when_odd(tmp_path: Path) -> None:
    privacy = Privacy(tmp_path)
    for text in ("a red star", "  two\tspaces\n", "k\u200bi\u200bll", "42 cats, 16:9", "\ud800 half", ""):
        assert privacy.prompt(text) == text
    assert privacy.prompt(None) is None
    assert Privacy(tmp_path, "none").prompt("a star") is None
    assert Privacy(tmp_path, "full").prompt(PERSONAL[0]) == PERSONAL[0]


def test_a_prompt_of_digits_is_redacted_whole_and_quickly(tmp_path: Path) -> None:
    privacy = Privacy(tmp_path)
    noise = "".join(random.Random(0).choices("0123456789 -+().@", k=1000))
    privacy.prompt("+44 20 7946 0018")  # what is imported late is imported
    started = time.process_time()
    for _ in range(20):
        kept = privacy.prompt(f"call {noise} or ada@example.org")
    assert time.process_time() - started < 1.0  # 2.3 s when telephone numbers are looked for in it
    assert kept is not None and "[number]" in kept and kept.endswith("or [email]")
    assert not any(c.isdigit() for c in kept)


def test_users_are_known_by_key_and_home_alone(tmp_path: Path) -> None:
    privacy = Privacy(tmp_path / "a")
    one = privacy.user("k1", "ada")
    assert one == Privacy(tmp_path / "a").user("k1", "ada") and one is not None and len(one) == 32
    others = {privacy.user("k2", "ada"), privacy.user("k1", "eve"), Privacy(tmp_path / "b").user("k1", "ada")}
    assert len(others | {one}) == 4 and privacy.user("k1", None) is privacy.user("k1", "") is None
    assert "ada" not in (tmp_path / "a" / "serve.key").read_text()


def test_a_key_that_opted_out_leaves_neither_prompt_nor_user(tmp_path: Path) -> None:
    book = Logbook(tmp_path / "logbook", "w", flush_s=60)
    book.append(Entry("r1", 200, 0.1, "k", "a star", user="ada", private=True), Entry("r2", 200, 0.1, "k", "a moon"))
    book.close()
    first, second = read_logbook(tmp_path / "logbook").to_pylist()
    assert (first["prompt"], first["user"], first["status"], first["key_id"]) == (None, None, 200, "k")
    assert second["prompt"] == "a moon"


def test_a_prompt_that_cannot_be_redacted_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> list[object]:
        raise RuntimeError("a flaw in the finder")

    monkeypatch.setattr("serving.privacy.personal_data", broken)
    book = Logbook(tmp_path / "logbook", "w", flush_s=60)
    book.append(Entry("r1", 200, 0.1, "k", "a star"))
    book.close()
    assert read_logbook(tmp_path / "logbook")["prompt"].to_pylist() == [None]


def test_the_secret_is_private_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    first = derived_key(tmp_path, "a")
    path = tmp_path / "serve.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first == derived_key(tmp_path, "a") != derived_key(tmp_path, "b") and len(first) == 32
    path.chmod(0o640)
    with pytest.raises(InputError, match="0600"):
        derived_key(tmp_path, "a")
    path.chmod(0o600)
    path.write_text("not a secret")
    with pytest.raises(InputError, match="damaged"):
        derived_key(tmp_path, "a")


def test_rows_wait_while_the_secret_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "serve.key").touch(0o600)
    book = Logbook(tmp_path / "logbook", "w", flush_s=60)
    book.append(Entry("r1", 200, 0.1, "k", "a star", user="ada"))
    with pytest.raises(InputError):
        book.flush()
    assert book.error and not list((tmp_path / "logbook").glob("*.parquet"))
    (tmp_path / "serve.key").unlink()
    book.close()
    assert read_logbook(tmp_path / "logbook")["request_id"].to_pylist() == ["r1"] and book.error is None
