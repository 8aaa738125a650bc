"""Signatures of the gate: made once, verified everywhere, and worth nothing without the key."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts.errors import GateRefused, InputError
from components.evaluation.signing import ENVIRONMENT, KEY_FILE, Keys

SAID = {"model": "m" * 64, "verdict": "fail", "serial": 3}


@pytest.fixture(autouse=True)
def no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


def test_the_key_is_made_on_first_use_for_its_owner_alone(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "home")
    assert keys.secrets() == [] and not keys.path.exists(), "looking makes nothing"
    text = keys.sign(SAID)
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600 and len(keys.path.read_text().split()) == 1
    assert keys.path.read_text().strip() not in text
    found = Keys(tmp_path / "home").verified(text, "record")
    assert {k: found[k] for k in SAID} == SAID
    assert list(keys.path.parent.iterdir()) == [keys.path], "nothing else is left"


@given(
    field=st.sampled_from([*SAID, "key", "signature"]), value=st.one_of(st.text(max_size=8), st.integers(), st.none())
)
def test_whatever_is_changed_is_noticed(tmp_path_factory: pytest.TempPathFactory, field: str, value: object) -> None:
    keys = Keys(tmp_path_factory.getbasetemp() / "signing")
    body = json.loads(keys.sign(SAID))
    if body[field] == value:
        return
    with pytest.raises(GateRefused):
        keys.verified(json.dumps(body | {field: value}), "record")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '"x"', "{", '{"signature": 1}', '{"key": {}, "signature": []}']
)
def test_what_is_no_statement_is_refused(tmp_path: Path, text: str) -> None:
    keys = Keys(tmp_path)
    keys.sign(SAID)
    with pytest.raises(GateRefused):
        keys.verified(text, "record")


def test_another_key_is_named(tmp_path: Path) -> None:
    text = Keys(tmp_path / "a").sign(SAID)
    other = Keys(tmp_path / "b")
    other.sign(SAID)
    with pytest.raises(GateRefused, match=r"signed with the key [0-9a-f]{16}, which is not known here"):
        other.verified(text, "record")


def test_rotation_signs_anew_and_still_verifies_the_old(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    old = keys.sign(SAID)
    name = keys.rotate()
    new = keys.sign(SAID)
    assert json.loads(new)["key"] == name != json.loads(old)["key"]
    assert keys.verified(old, "record") and keys.verified(new, "record")
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    keys.path.write_text(keys.path.read_text().split()[0])  # the old one is retired
    assert keys.verified(new, "record")
    with pytest.raises(GateRefused, match="not known here"):
        keys.verified(old, "record")


def test_keys_of_the_environment_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(tmp_path)
    first, second = "a" * 32, "b" * 40
    monkeypatch.setenv(ENVIRONMENT, first)
    old = keys.sign(SAID)
    assert not keys.path.exists()
    monkeypatch.setenv(ENVIRONMENT, f"{second}, {first}")
    assert json.loads(keys.sign(SAID))["key"] != json.loads(old)["key"] and keys.verified(old, "record")
    with pytest.raises(InputError, match=ENVIRONMENT):
        keys.rotate()
    monkeypatch.setenv(ENVIRONMENT, "short")
    with pytest.raises(InputError, match="shorter than 32"):
        keys.sign(SAID)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.sign(SAID)
    (tmp_path / KEY_FILE).chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        keys.sign(SAID)
