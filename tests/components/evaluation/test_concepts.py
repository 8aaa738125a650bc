"""Concepts are found by cosine, stricter where one of special care is there."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.concepts import SPECIAL_CARE, Concepts


class Reader:
    """Reads a text as the direction that its first letter names."""

    digest = "r"
    said: list[str]

    def read(self, texts: list[str]) -> np.ndarray:
        self.said = list(texts)
        return np.eye(3, dtype=np.float32)[["abc".index(text[0]) for text in texts]]


def picture(*cosines: float) -> np.ndarray:
    return np.array([cosines], np.float32)


def test_thresholds_are_cosines() -> None:
    concepts = Concepts.of(Reader(), {"a_thing": 0.3, "b": 0.5})  # type: ignore[arg-type]
    found = concepts.found(np.concatenate([picture(0.2, 0.4, 0.9), picture(0.4, 0.4, 0.0), picture(0.31, 0.8, 0)]))
    assert found[0] == {} and set(found[1]) == {"a_thing"} and set(found[2]) == {"a_thing", "b"}
    assert found[1]["a_thing"] == pytest.approx(0.1, abs=1e-6)


def test_names_are_read_as_words_or_as_given() -> None:
    reader = Reader()
    Concepts.of(reader, {"a_thing": 0.3, "x": 0.5}, texts={"x": "b, in other words"})  # type: ignore[arg-type]
    assert reader.said == ["a thing", "b, in other words"]


def test_special_care_makes_the_others_stricter() -> None:
    just_below = picture(0.2, 0.5 - SPECIAL_CARE / 2, 0)
    plain = Concepts.of(Reader(), {"a": 0.3, "b": 0.5}, special=["a"])  # type: ignore[arg-type]
    assert plain.found(just_below) == [{}]
    with_care = plain.found(picture(0.3, 0.5 - SPECIAL_CARE / 2, 0))
    assert set(with_care[0]) == {"a", "b"} and with_care[0]["a"] == pytest.approx(0, abs=1e-6)


def test_nothing_named_is_nothing_found() -> None:
    assert Concepts.of(Reader(), {}).found(picture(1, 1, 1)) == [{}]  # type: ignore[arg-type]
