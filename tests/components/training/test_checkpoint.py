"""Checkpoints: whole or not seen, checked when read, kept by the rule, anywhere."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from components.contracts.errors import StoreFullError, TrainingError
from components.training import checkpoint
from components.training.checkpoint import Checkpoints, Mark
from components.training.keeper import Keeper
from components.training.weights_file import safetensors_chunks

STATE = {
    "model.safetensors": {"a": torch.arange(6.0).view(2, 3), "none": torch.zeros(0)},
    "optimiser.safetensors": {"exp_avg/a": torch.ones(2, 3)},
}


def _mark(step: int, validation: float | None = None) -> Mark:
    return Mark(step, updates=step, seconds=1.5, world=2, zero_stage=1, validation=validation, clock={"sums": {"x": 1}})


def _steps(checkpoints: Checkpoints) -> list[int]:
    return [mark.step for mark in checkpoints.marks()]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.newest() is None
    checkpoints.write(_mark(7, 0.25), STATE, {"curve.jsonl": b"{}\n"})
    found = checkpoints.newest()
    assert found is not None and found.mark == _mark(7, 0.25)
    for name, tensors in STATE.items():
        assert found.load(name).keys() == tensors.keys()
        assert all(torch.equal(found.load(name)[k], v) for k, v in tensors.items())
    assert (found.folder / "curve.jsonl").read_bytes() == b"{}\n"
    assert checkpoint.latest(tmp_path) == (found.mark, found.folder)


@pytest.mark.parametrize("url", ["memory://training/checkpoints", "file://{}"])
def test_any_store_will_do(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "local"))
    (tmp_path / "local").mkdir()
    checkpoints = Checkpoints(url.format(tmp_path / "store"), keep_last=1)
    for step in (3, 5):
        checkpoints.write(_mark(step), STATE)
    found = Checkpoints(url.format(tmp_path / "store")).newest()
    assert found is not None and found.mark.step == 5 and _steps(checkpoints) == [5]
    assert torch.equal(found.load("model.safetensors")["a"], STATE["model.safetensors"]["a"])
    changed = {**STATE, "model.safetensors": {"a": torch.zeros(2, 3)}}
    checkpoints.write(_mark(5), changed)  # a training that started over: the copy on this machine is of another one
    again = checkpoints.newest()
    assert again is not None and again.load("model.safetensors")["a"].abs().max() == 0


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_one_is_told_of_and_the_one_before_it_taken(name: str, damage: str, tmp_path: Path) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(str(tmp_path), tell=told.append)
    for step in (3, 5):
        checkpoints.write(_mark(step), STATE)
    _damage(tmp_path / "step-00000005" / name, damage)
    found = checkpoints.newest()
    assert found is not None and found.mark.step == 3
    assert len(told) == 1 and "step 5 is damaged" in told[0] and name in told[0]
    _damage(tmp_path / "step-00000003" / name, damage)
    with pytest.raises(TrainingError, match=r"All 2 checkpoints below .* are damaged.*delete that folder"):
        checkpoints.newest()


def _damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))


def test_there_is_always_one_while_another_process_writes_and_takes_away(tmp_path: Path) -> None:
    writer, ended = Checkpoints(str(tmp_path), keep_last=1), threading.Event()
    writer.write(_mark(1), STATE)

    def write() -> None:
        for step in range(2, 200):
            writer.write(_mark(step), STATE)
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    while not ended.is_set():
        seen += [_steps(Checkpoints(str(tmp_path)))[0]]
    thread.join()
    assert seen == sorted(seen) and len(set(seen)) > 5


def test_half_a_checkpoint_is_not_seen_and_goes_at_the_next(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(_mark(2), STATE)
    half = tmp_path / "step-99999999"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert _steps(checkpoints) == [2]
    checkpoints.write(_mark(4), STATE)
    assert _steps(checkpoints) == [4, 2] and not half.exists()


def test_an_unreadable_mark_is_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(str(tmp_path), tell=told.append)
    checkpoints.write(_mark(2), STATE)
    (tmp_path / "step-00000002" / "mark.json").write_text('{"mark": {"stride": 2}}')
    assert checkpoints.newest() is None and "cannot be read" in told[0]


@settings(max_examples=25, deadline=None)
@given(
    losses=st.lists(st.one_of(st.none(), st.floats(0, 9)), min_size=1, max_size=7),
    last=st.integers(1, 3), best=st.integers(0, 2),
)  # fmt: skip
def test_the_last_and_the_best_are_kept(
    losses: list[float | None], last: int, best: int, tmp_path_factory: Any
) -> None:
    checkpoints = Checkpoints(str(tmp_path_factory.mktemp("kept")), last, best)
    for step, loss in enumerate(losses, 1):
        checkpoints.write(_mark(step, loss), {})
    kept = _steps(checkpoints)
    newest = list(range(len(losses), 0, -1))[:last]
    assert kept[: len(newest)] == newest
    assert len(kept) <= last + best
    rated = [loss for loss in losses if loss is not None]
    if best and rated:
        assert min(losses[step - 1] for step in kept if losses[step - 1] is not None) == min(rated)  # type: ignore[type-var]


def test_the_format_is_that_of_the_library(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(0)
    tensors = {
        "ä": torch.randn(3, 5, generator=draws), "scalar": torch.tensor(3), "half": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False]), "turned": torch.arange(6).view(2, 3).t(), "empty": torch.zeros(0, 4),
    }  # fmt: skip
    (tmp_path / "x.safetensors").write_bytes(b"".join(bytes(c) for c in safetensors_chunks(tensors)))
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


class _Full(dict[str, torch.Tensor]):
    """Tensors at whose reading the disk is full."""

    def items(self) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_an_error_at_the_next_step_and_the_former_stays(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(StoreFullError, match="No room is left"), Keeper(checkpoints) as keeper:
        keeper.keep(_mark(1), STATE)
        keeper.keep(_mark(2), {**STATE, "more.safetensors": _Full()})
        for _ in range(1000):
            keeper.check()
            threading.Event().wait(0.01)
    assert _steps(checkpoints) == [1] and [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    found = checkpoints.newest()
    assert found is not None and found.mark.step == 1


class _Slow(dict[str, torch.Tensor]):
    """Tensors that are written when somebody lets them."""

    def __init__(self, go: threading.Event, *tensors: Any) -> None:
        super().__init__(*tensors)
        self.go, self.begun = go, threading.Event()

    def items(self) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        return super().items()


def test_writing_goes_on_beside_the_training(tmp_path: Path) -> None:
    go = threading.Event()
    slow = _Slow(go, {"a": torch.ones(2)})
    checkpoints = Checkpoints(str(tmp_path))
    with Keeper(checkpoints) as keeper:
        keeper.keep(_mark(1), {"model.safetensors": slow})
        assert slow.begun.wait(30)
        assert _steps(checkpoints) == []  # and yet keep has returned
        keeper.check()
        go.set()
        keeper.keep(_mark(2), STATE)  # waits for the first
        assert 1 in _steps(checkpoints)
    assert _steps(checkpoints) == [2, 1]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(_mark(1), {"model.safetensors": {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}})
    found = checkpoints.newest()
    assert found is not None
    fitting = nn.Linear(3, 2)
    found.put_weights(fitting)
    assert fitting.weight.abs().max() == 0
    with pytest.raises(TrainingError, match=r"another model: 2 of its 2 weights do not fit, weight for one"):
        found.put_weights(nn.Linear(4, 4))


@pytest.fixture(autouse=True)
def _no_memory_left() -> Iterator[None]:
    """fsspec's memory filesystem is one for the process."""
    yield
    import fsspec

    fs = fsspec.filesystem("memory")
    if fs.exists("/training"):
        fs.rm("/training", recursive=True)


def test_marks_are_plain_json(tmp_path: Path) -> None:
    Checkpoints(str(tmp_path)).write(replace(_mark(3), validation=0.5), STATE)
    written = json.loads((tmp_path / "step-00000003" / "mark.json").read_text())
    assert written["mark"]["step"] == 3 and written["mark"]["validation"] == 0.5
    assert set(written["files"]) == set(STATE) and len(written["files"]["model.safetensors"]["sha256"]) == 64
