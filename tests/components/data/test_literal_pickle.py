"""Pickles as data: plain values come through, programs are refused without being run."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.contracts.errors import InputError
from components.data.literal_pickle import MAX_BYTES, read_literal

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, protocol=st.integers(3, 5))
def test_plain_values_come_through(value: Any, protocol: int) -> None:
    assert read_literal(pickle.dumps(value, protocol), "x.pickle") == value


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.text(st.characters(codec="utf-8"))), protocol=st.integers(0, 5))
def test_lists_of_names_of_every_protocol(names: list[str], protocol: int) -> None:
    assert read_literal(pickle.dumps(names, protocol), "x.pickle") == names


def test_a_list_as_python_2_wrote_it() -> None:
    for data in (
        b"(lp0\nS'002.Laysan/Laysan_0002_1027'\np1\naS'b'\np2\na.",
        b"\x80\x02]q\x00(U\x01aq\x01U\x01bq\x02e.",
    ):
        assert read_literal(data, "filenames.pickle")[-1] == "b"


@settings(max_examples=120, deadline=None)
@given(data=st.binary(max_size=80))
def test_anything_else_is_an_error_for_people(data: bytes) -> None:
    try:
        read_literal(data, "x.pickle")
    except InputError as error:
        assert "x.pickle" in str(error)


@settings(max_examples=100, deadline=None)
@given(value=st.lists(st.text()), at=st.integers(0, 10**6), byte=st.integers(0, 255), protocol=st.integers(0, 5))
def test_a_damaged_file_is_an_error_for_people(value: list[str], at: int, byte: int, protocol: int) -> None:
    data = bytearray(pickle.dumps(value, protocol))
    data[at % len(data)] = byte
    try:
        read_literal(bytes(data), "x.pickle")
    except InputError as error:
        assert "x.pickle" in str(error)


class _Runs:
    """Unpickled by the standard library, it makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.folder,))


@pytest.mark.parametrize("protocol", range(6))
def test_a_program_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    folder = tmp_path / "made"
    data = pickle.dumps(["a bird", _Runs(str(folder))], protocol)
    with pytest.raises(InputError, match=r"GLOBAL.*nothing in it was run"):
        read_literal(data, "filenames.pickle")
    assert not folder.exists()
    pickle.loads(data)  # what was kept from happening
    assert folder.is_dir()


@pytest.mark.parametrize(
    "data",
    [
        b"(S'echo'\nios\nsystem\n.",  # INST
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL, REDUCE
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"]}b.",  # BUILD
        b"\x80\x05\x97.",  # NEXT_BUFFER
    ],
)
def test_opcodes_that_are_no_values_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"not read|damaged"):
        read_literal(data, "x.pickle")


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="at most"):
        read_literal(bytes(MAX_BYTES + 1), "x.pickle")
    # a memo place of two thousand million takes no room, and a length that is not there is an error
    assert read_literal(b"\x80\x02]r\xff\xff\xff\x7f.", "x.pickle") == []
    with pytest.raises(InputError, match="damaged"):
        read_literal(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\x00\x00a.", "x.pickle")
    monkeypatch.setattr("components.data.literal_pickle._MAX_OPCODES", 100)
    with pytest.raises(InputError, match="opcodes"):
        read_literal(pickle.dumps(list(range(2000))), "x.pickle")
    assert len(list(pickletools.genops(pickle.dumps([1])))) < 100
