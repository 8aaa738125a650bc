"""Keys: hashed at rest, private, verified, revoked."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import InputError
from serving.auth import ADMIN, GENERATE, Key, KeyRing, change_key, list_keys, make_key, require, revoke_key
from serving.schemas import ApiError


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


def test_rights_and_limits_are_kept_and_can_be_changed_while_a_server_runs(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text = make_key(path, "ada", rate=5, quota=7, log_prompts=False)
    ring = KeyRing(path)
    key = ring.verify(text)
    assert key and (key.rights, key.rate, key.quota, key.log_prompts) == ((GENERATE,), 5, 7, False)
    assert not key.may(ADMIN)
    assert change_key(path, key.id, rights=(GENERATE, ADMIN), rate=0, name="grace").may(ADMIN)
    now = ring.verify(text)
    assert now and now.may(ADMIN) and (now.name, now.rate, now.quota) == ("grace", 0, 7)
    with pytest.raises(InputError, match="no key"):
        change_key(path, "00000000", rate=1)


@pytest.mark.parametrize(
    "wrong", [{"rights": ("root",)}, {"rate": -1}, {"quota": True}, {"name": " "}, {"name": "a\x1b"}]
)
def test_what_is_no_right_or_limit_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "keys.json"
    make_key(path, "ada")
    before = path.read_bytes()
    with pytest.raises(InputError):
        change_key(path, list_keys(path)[0].id, **wrong)
    with pytest.raises(InputError):
        make_key(path, **({"name": "eve"} | wrong))  # type: ignore[arg-type]
    assert path.read_bytes() == before


def test_a_file_of_before_there_were_rights_is_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text = make_key(path, "ada")
    entry = json.loads(path.read_text())["keys"][0]
    path.write_text(json.dumps({"keys": [{name: entry[name] for name in ("id", "name", "sha256", "created")}]}))
    key = KeyRing(path).verify(text)
    assert key == Key(entry["id"], "ada", entry["sha256"], entry["created"]) and key.may(GENERATE)


def test_what_is_required_of_a_request(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    plain, admin = make_key(path, "ada"), make_key(path, "root", rights=(GENERATE, ADMIN))
    ring = KeyRing(path)
    assert require(None, "") is None  # a server without keys
    assert require(ring, f"bearer  {plain} ").name == "ada"  # type: ignore[union-attr]
    assert require(ring, f"Bearer {admin}", ADMIN).name == "root"  # type: ignore[union-attr]
    for header, right, status, code in (
        ("", GENERATE, 401, "missing_api_key"),
        (f"Basic {plain}", GENERATE, 401, "missing_api_key"),
        (f"Bearer {plain}x", GENERATE, 401, "invalid_api_key"),
        (f"Bearer {plain}", ADMIN, 403, "insufficient_permissions"),
    ):
        with pytest.raises(ApiError) as refused:
            require(ring, header, right)
        assert (refused.value.status, refused.value.code) == (status, code)
