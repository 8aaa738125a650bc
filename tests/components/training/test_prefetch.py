"""Batches from a thread: the same ones in the same order, errors come out where they are taken, and it ends."""

from __future__ import annotations

import threading

import pytest
import torch

from components.training.prefetch import Batches


def test_every_batch_once_and_in_order() -> None:
    made: list[int] = []

    def make(step: int) -> dict[str, torch.Tensor]:
        made.append(step)
        return {"x": torch.full((2,), step)}

    with Batches(make, 3, 40) as batches:
        assert [int(batches.take(step)["x"][0]) for step in range(3, 40)] == list(range(3, 40))
    assert made == list(range(3, 40))


def test_a_few_are_made_ahead_and_no_more() -> None:
    reached, made = threading.Event(), list[int]()

    def make(step: int) -> dict[str, torch.Tensor]:
        made.append(step)
        if step == 2:
            reached.set()
        return {}

    with Batches(make, 0, 100) as batches:
        assert reached.wait(10)  # two wait to be taken, the third is held
        batches.take(0)
    assert len(made) <= 5
    assert not any(thread.name == "batches" for thread in threading.enumerate())


def test_an_error_comes_out_at_its_step() -> None:
    def make(step: int) -> dict[str, torch.Tensor]:
        if step == 2:
            raise ValueError("row 7 is damaged")
        return {}

    with Batches(make, 0, 5) as batches:
        batches.take(0)
        batches.take(1)
        with pytest.raises(ValueError, match="row 7"):
            batches.take(2)


def test_leaving_early_ends_the_thread() -> None:
    with pytest.raises(ZeroDivisionError), Batches(lambda step: {}, 0, 10**9) as batches:
        batches.take(0)
        raise ZeroDivisionError
    assert not any(thread.name == "batches" for thread in threading.enumerate())
