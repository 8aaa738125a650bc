"""Memory that ranks share: the same means as gloo's, in real processes, and an error where one died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.training import shared


@st.composite
def tensors(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[shared.Readers, ...], int]:
    """Sizes, the readers of each, and the number of ranks."""
    world = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(0, 40), max_size=8))
    ranks = st.sets(st.integers(0, world - 1), min_size=1).map(lambda found: tuple(sorted(found)))
    return tuple(sizes), tuple(draw(ranks) for _ in sizes), world


@given(tensors(), st.integers(1, 30))
def test_every_element_is_averaged_once_and_by_one_of_its_readers(
    found: tuple[tuple[int, ...], tuple[shared.Readers, ...], int], room: int
) -> None:
    sizes, readers, world = found
    fillings = shared._cuts(sizes, readers, world, room)
    seen = []
    for filling in fillings:
        assert len(filling) == world
        for rank, share in enumerate(filling):
            assert sum(stop - start for _, start, stop in share) <= max(room // world, 1)
            assert all(rank in readers[i] and start < stop for i, start, stop in share)
            seen += [(i, at) for i, start, stop in share for at in range(start, stop)]
    assert sorted(seen) == [(i, at) for i, size in enumerate(sizes) for at in range(size)]


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 5), st.integers(1, 30))
def test_what_everyone_wants_is_shared_out_evenly(sizes: list[int], world: int, room: int) -> None:
    everyone = tuple(range(world))
    shares = [0] * world
    for filling in shared._cuts(tuple(sizes), (everyone,) * len(sizes), world, room):
        for rank, share in enumerate(filling):
            shares[rank] += sum(stop - start for _, start, stop in share)
    assert max(shares) == -(-sum(sizes) // world)


def ranks(what: str, world: int, tmp_path: Path) -> list[subprocess.Popen[str]]:
    """Processes of a group, each of which does ``what`` of ``shared_rank.py``."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.components.training.shared_rank", what, str(rank), str(world), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip


@pytest.mark.parametrize("world", [2, 3])
def test_means_and_sums_are_those_of_gloo(world: int, tmp_path: Path) -> None:
    running = ranks("compare", world, tmp_path)
    said = [one.communicate(timeout=300) for one in running]
    assert [one.returncode for one in running] == [0] * world, [err[-2000:] for _, err in said]
    assert len({out for out, _ in said}) == 1 and "same" in said[0][0], said  # the same bits on every rank


def test_a_rank_that_dies_raises_in_the_others(tmp_path: Path) -> None:
    running = ranks("die", 2, tmp_path)
    said = [one.communicate(timeout=300) for one in running]
    assert running[1].returncode == -signal.SIGKILL
    assert running[0].returncode == 3 and "Rank 1 of the training ended" in said[0][0], said


def test_ranks_of_two_machines_leave_it_to_gloo(tmp_path: Path) -> None:
    running = ranks("apart", 2, tmp_path)
    said = [one.communicate(timeout=300) for one in running]
    assert [one.returncode for one in running] == [0, 0], [err[-2000:] for _, err in said]
    assert [out.split() for out, _ in said] == [["None"], ["None"]]


def test_a_training_leaves_no_file_behind(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    for one in ranks("compare", 2, tmp_path):
        one.communicate(timeout=300)
    assert set(os.listdir("/dev/shm")) <= before
