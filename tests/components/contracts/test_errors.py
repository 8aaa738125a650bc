"""Errors say what was found, what was expected and what to do; they survive the way between processes."""

from __future__ import annotations

import pickle

import pytest

from components.contracts import errors


def subclasses(cls: type) -> list[type]:
    return [cls, *(d for c in cls.__subclasses__() for d in subclasses(c))]


@pytest.mark.parametrize("cls", subclasses(errors.AtelierError))
def test_message_and_pickle(cls: type[errors.AtelierError]) -> None:
    error = cls("It is red", expected="blue.", remedy="paint it")
    assert str(error) == "It is red. Expected: blue. Remedy: paint it."
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls and str(copy) == str(error)
    assert cls.exit_code > 0
    assert f"{cls.__name__} " in (errors.__doc__ or "") + "AtelierError "
