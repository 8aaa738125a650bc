"""Reading a large JSON object as a stream: the elements of its arrays, one at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

_READ = 1 << 20  # bytes
_MOST = 1 << 24  # characters of one element
_SPACE = " \t\n\r"
_AFTER = f"{_SPACE},]}}:"  # of a value


class BadJson(ValueError):
    """The file is not JSON of this form: the end of a message."""


def array_elements(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """(key, element) for every element of every array that is a value of the file's one object, in order.

    Other values are passed over. In memory is one element and a megabyte beside it.

    Raises:
        BadJson: it is no object, it ends early, or an element is larger than 16 million characters.
        UnicodeDecodeError: it is not UTF-8.
    """
    text = _Text(file)
    text.expect("{")
    if text.skips("}"):
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise BadJson(f"a key is not text, at character {text.place}")
        text.expect(":")
        if text.skips("["):
            if not text.skips("]"):
                while True:
                    yield key, text.value()
                    if text.skips("]"):
                        break
                    text.expect(",")
        else:
            text.value()
        if text.skips("}"):
            return
        text.expect(",")


class _Text:
    """The part of a file that is being read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text, self._at, self._before, self._ended = "", 0, 0, False

    @property
    def place(self) -> int:
        return self._before + self._at

    def value(self) -> Any:
        """The next JSON value."""
        self._to_next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise BadJson(f"too many brackets within each other, at character {self.place}") from error
            except ValueError as error:
                if self._ended:
                    raise BadJson(f"{error.args[0].split(':')[0]}, at character {self.place}") from error
            else:
                closed = self._text[end : end + 1] in _AFTER if end < len(self._text) else self._ended
                if closed or not isinstance(value, int | float) or self._ended:  # or a number may go on
                    self._at = end
                    return value
            if len(self._text) - self._at > _MOST:
                raise BadJson(f"a value is longer than {_MOST} characters, or not JSON, at character {self.place}")
            self._fill()

    def expect(self, sign: str) -> None:
        if not self.skips(sign):
            found = self._text[self._at : self._at + 1]
            raise BadJson(f"{found!r} instead of {sign!r}, at character {self.place}" if found else "it ends early")

    def skips(self, sign: str) -> bool:
        """Pass over ``sign`` if it comes next."""
        self._to_next()
        if self._text[self._at : self._at + 1] != sign:
            return False
        self._at += 1
        return True

    def _to_next(self) -> None:
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return
                self._at += 1
            if self._ended:
                return
            self._fill()

    def _fill(self) -> None:
        data = self._file.read(_READ)
        self._before += self._at
        self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        self._at, self._ended = 0, not data
