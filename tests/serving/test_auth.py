"""Keys: hashed at rest, private, verified, revoked."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import InputError
from serving.auth import KeyRing, list_keys, make_key, revoke_key


def test_a_key_is_verified_and_its_text_is_nowhere_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keys.json"
    text = make_key(path, "ada")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text.rsplit("-", 1)[-1] not in path.read_text()
    key = KeyRing(path).verify(text)
    assert key is not None and key.name == "ada" and key.id in text


def test_wrong_keys_are_not_verified(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text = make_key(path, "ada")
    ring = KeyRing(path)
    for wrong in ("", "atelier", text[:-1], text + "x", text.upper(), "atelier-00000000-" + text[17:], "a-b", "--"):
        assert ring.verify(wrong) is None


def test_new_and_revoked_keys_are_noticed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ring = KeyRing(path)
    assert ring.verify("atelier-x-y") is None  # no file yet
    first, second = make_key(path, "a"), make_key(path, "b")
    assert ring.verify(first) and ring.verify(second)
    assert revoke_key(path, list_keys(path)[0].id) and not revoke_key(path, "nobody")
    assert ring.verify(first) is None and ring.verify(second)


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: make_key(path, str(i)), range(16)))
    ring = KeyRing(path)
    assert all(ring.verify(key) for key in made)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": [{"id": 1}]}', "\x00"])
def test_a_damaged_file_is_an_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(InputError, match="keys"):
        KeyRing(path).verify("atelier-x-y")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=80))
def test_no_text_is_a_key_by_chance(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "ring.json"
    if not path.exists():
        make_key(path, "a")
    assert KeyRing(path).verify(text) is None
