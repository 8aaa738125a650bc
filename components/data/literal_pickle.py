"""Python pickles read as data: lists, tuples, dictionaries, strings, bytes, numbers, None and truth values.

A pickle is a program, and loading one runs it. Here no part of it is run: its opcodes are read by the standard
library's disassembler, those that build plain values are followed by this module alone, and the first other one ends
the reading. So a file from anywhere can be opened.
"""

from __future__ import annotations

import pickletools
from typing import Any

from components.contracts.errors import InputError

MAX_BYTES = 64 << 20  # COCO's list of 82 783 names has 3 MB
_MAX_OPCODES = 4_000_000
_MARK = object()

_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
})  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """What in the pickle is no plain value."""


def read_literal(data: bytes, name: str) -> Any:
    """The value in a pickle of protocol 0 to 5.

    Args:
        name: of the file, for messages.

    Raises:
        InputError: it is larger than ``MAX_BYTES``, damaged, or holds anything but plain values, such as a function
            to be called.
    """
    if len(data) > MAX_BYTES:
        raise InputError(
            f"The pickle {name} has {len(data)} bytes",
            expected=f"at most {MAX_BYTES}",
            remedy="check that it is a list",
        )
    try:
        return _Machine().run(data)
    except _Refused as refused:
        raise InputError(
            f"The pickle {name} is not read: {refused}; nothing in it was run",
            expected="a pickle of lists, strings and numbers alone",
            remedy="write it again as plain values, from a source that you trust",
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, UnicodeError, OverflowError, AttributeError) as error:
        raise InputError(
            f"The pickle {name} is damaged: {(str(error).splitlines() or [type(error).__name__])[0][:200]}",
            expected="a whole pickle of lists, strings and numbers",
            remedy="copy the file again",
        ) from error


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MAX_OPCODES:
                raise _Refused(f"it has more than {_MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                value = self.stack.pop()
                if self.stack or value is _MARK:
                    raise ValueError("values are left at its end")
                return value
            self.follow(opcode.name, argument)
        raise ValueError("it has no end")

    def follow(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUTS:  # a place in a dictionary: a large number takes no room
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.top()
        elif name in _GETS:
            stack.append(self.memo[int(argument)])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = stack[len(stack) - count :] if count else []
            if len(items) < count or any(item is _MARK for item in items):
                raise ValueError("a tuple lacks its items")
            del stack[len(stack) - count :]
            stack.append(tuple(items))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name in ("LIST", "TUPLE"):
            items = self.since_mark()
            stack.append(items if name == "LIST" else tuple(items))
        elif name == "DICT":
            items = self.since_mark()
            stack.append(dict(zip(items[::2], items[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self.since_mark()
            self.held(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.since_mark()
            self.held(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"it asks for {name}" + (f" of {str(argument)[:80]!r}" if argument is not None else ""))

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark stands where a value is expected")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def held(self, kind: type) -> Any:
        """The container on top, to put items in."""
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"items are put into something that is no {kind.__name__}")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("it lacks a mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items
