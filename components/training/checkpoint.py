"""Checkpoints of a training: folders that count when their ``mark.json`` is there, which is written last.

``step-00001200/``
    ``model.safetensors``      the weights to draw with: the moving average where there is one, and buffers
    ``weights.safetensors``    the weights in training, where they are not those
    ``optimiser.safetensors``  the optimiser's state, ``exp_avg/<parameter>`` and so on
    ``mark.json``              where the training stands, and size and checksum of every file

All tensors are whole, in fp32 and by name, so that a training goes on with any number of workers, under any ZeRO
stage, with or without offload. Random numbers need not be kept: they are a function of seed and step. The folder
may be at any fsspec URL. A killed or failed writer leaves the former checkpoints whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import fsspec
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor, nn

from components.contracts.errors import TrainingError
from components.runtime.storage import record_of, write_bytes, write_chunks
from components.training.weights_file import safetensors_chunks

MODEL, WEIGHTS, OPTIMISER = "model.safetensors", "weights.safetensors", "optimiser.safetensors"
MARK = "mark.json"
_LISTINGS = 10  # tries to read a folder from which another process takes what was listed

State = Mapping[str, Mapping[str, Tensor]]  # tensors by name, by file


@dataclass(frozen=True)
class Mark:
    """Where a checkpoint stands."""

    step: int  # steps done
    updates: int  # of the moving average
    seconds: float  # training time so far, over all runs
    world: int  # how it was trained last; it may go on otherwise
    zero_stage: int
    validation: float | None = None  # the newest validation loss, where there is one
    clock: dict[str, Any] = field(default_factory=dict)  # the clock's own notes


@dataclass(frozen=True)
class Found:
    """A whole checkpoint in a local folder."""

    mark: Mark
    folder: Path

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of a file, mapped from disk."""
        from safetensors.torch import load_file

        return dict(load_file(self.folder / name))

    def put_weights(self, module: nn.Module) -> None:
        """Bring a module that no engine holds yet to this checkpoint's weights and buffers.

        Raises:
            TrainingError: they are of another module.
        """
        weights = self.load(WEIGHTS if (self.folder / WEIGHTS).exists() else MODEL)
        trained = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        wrong = [name for name, shape in trained.items() if name not in weights or weights[name].shape != shape]
        if wrong:
            raise TrainingError(
                f"The checkpoint {self.folder} is of another model: {len(wrong)} of its {len(trained)} weights do not "
                f"fit, {wrong[0]} for one",
                expected="the weights of the model that the recipe describes",
                remedy=f"delete {self.folder.parent} and run the same command again; the training then starts over",
            )
        module.load_state_dict(weights, strict=False)


class Checkpoints:
    """The checkpoints of one training below a URL.

    Args:
        url: local folder or any fsspec URL, seen by every rank.
        keep_last: so many newest stay.
        keep_best: so many with the lowest validation loss stay too.
        tell: is given a line when something happened that a user should know.
    """

    def __init__(
        self, url: str, keep_last: int = 2, keep_best: int = 0, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = fsspec.core.url_to_fs(self.url)
        self._keep_last, self._keep_best, self._tell = keep_last, keep_best, tell

    def marks(self) -> list[Mark]:
        """Of all finished checkpoints, the newest first."""
        for _ in range(_LISTINGS):
            # a process that trains may take away what was listed, for a newer one that had not been there
            paths = self._listed(f"step-*/{MARK}")
            if paths or not self._listed("step-*"):
                with contextlib.suppress(FileNotFoundError):
                    return self._read(paths)
        return self._read(self._listed(f"step-*/{MARK}"))

    def _listed(self, pattern: str) -> list[str]:
        self._fs.invalidate_cache(self._root)
        return cast(list[str], self._fs.glob(f"{self._root}/{pattern}"))

    def _read(self, paths: list[str]) -> list[Mark]:
        found = []
        for path in paths:
            try:
                found.append(Mark(**json.loads(self._fs.cat_file(path))["mark"]))
            except (ValueError, KeyError, TypeError):
                self._tell(f"{path} cannot be read; that checkpoint is left out")
        return sorted(found, key=lambda mark: -mark.step)

    def newest(self) -> Found | None:
        """The newest checkpoint whose files are as they were written, or None where there never was one.

        Raises:
            TrainingError: there are checkpoints, and all are damaged.
        """
        marks = self.marks()
        for mark in marks:
            folder = self._fetched(mark.step)
            if not (fault := _fault(folder)):
                return Found(mark, folder)
            self._tell(f"checkpoint of step {mark.step} is damaged ({fault}); taking the one before it")
        if marks:
            raise TrainingError(
                f"All {len(marks)} checkpoints below {self.url} are damaged",
                expected="at least one whose files are as the training wrote them",
                remedy="delete that folder and run the same command again; the training then starts over",
            )
        return None

    def agreed(self) -> Found | None:
        """:meth:`newest` as rank 0 sees it. Every rank must call.

        Raises:
            TrainingError: all are damaged, or this rank does not find what rank 0 found.
        """
        answer: list[Any] = [None]
        found = None
        if dist.get_rank() == 0:
            try:
                found = self.newest()
                answer = [found.mark if found else None]
            except TrainingError as error:
                answer = [error]
        dist.broadcast_object_list(answer, 0)
        if isinstance(answer[0], TrainingError):
            raise answer[0]
        if answer[0] is None or found:
            return found
        folder = self._fetched(answer[0].step)
        if not (folder / MARK).exists():
            raise TrainingError(
                f"Rank {dist.get_rank()} does not find the checkpoint of step {answer[0].step} below {self.url}",
                expected="a folder that every worker sees",
                remedy="keep run.root on shared storage, or set run.checkpoints to a URL that all nodes reach",
            )
        return Found(answer[0], folder)

    def write(self, mark: Mark, state: State, notes: Mapping[str, bytes] | None = None) -> None:
        """Write a checkpoint, with ``notes`` as files beside it, and remove those that the rule does not keep.

        Raises:
            StoreFullError: no room is left; the former checkpoints are whole and the half-written one is removed.
        """
        name = _name(mark.step)
        self._remove(name)
        try:
            files = {}
            for file, tensors in state.items():
                sha = hashlib.sha256()
                size = write_chunks(f"{self.url}/{name}/{file}", _hashed(safetensors_chunks(tensors), sha))
                files[file] = {"size": size, "sha256": sha.hexdigest()}
            for file, data in (notes or {}).items():
                write_bytes(f"{self.url}/{name}/{file}", data)
                files[file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            content = json.dumps({"mark": asdict(mark), "files": files}).encode()
            write_bytes(f"{self.url}/{name}/{MARK}", content)
        except BaseException:
            self._remove(name)
            raise
        self._prune()

    def _prune(self) -> None:
        marks = self.marks()
        rated = sorted((m for m in marks if m.validation is not None), key=lambda m: (m.validation, -m.step))
        kept = {_name(m.step) for m in (*marks[: self._keep_last], *rated[: self._keep_best])}
        for path in cast(list[str], self._fs.glob(f"{self._root}/step-*")):
            if (name := path.rpartition("/")[2]) not in kept:
                self._remove(name)

    def _remove(self, name: str) -> None:
        path = f"{self._root}/{name}"
        if self._fs.exists(f"{path}/{MARK}"):
            self._fs.rm_file(f"{path}/{MARK}")  # first: a folder half removed must not count
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def _fetched(self, step: int) -> Path:
        """A checkpoint's local folder; of a remote one a copy, made by one process of this machine for all."""
        if isinstance(self._fs, LocalFileSystem):
            return Path(self._root) / _name(step)
        from filelock import FileLock

        key = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        target = Path(tempfile.gettempdir()) / "atelier-checkpoints" / key / _name(step)
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            mark = self._fs.cat_file(f"{self._root}/{_name(step)}/{MARK}")
            if not (target / MARK).exists() or (target / MARK).read_bytes() != mark:
                shutil.rmtree(target.parent / target.name, ignore_errors=True)
                target.mkdir()
                for name in json.loads(mark)["files"]:
                    self._fs.get_file(f"{self._root}/{_name(step)}/{name}", str(target / name))
                write_bytes(str(target / MARK), mark)
        return target


def latest(folder: Path) -> tuple[Mark, Path] | None:
    """Mark and folder of the newest finished checkpoint below ``folder``, or None."""
    marks = Checkpoints(str(folder)).marks()
    return (marks[0], folder / _name(marks[0].step)) if marks else None


def final_weights(url: str | Path) -> dict[str, Tensor]:
    """The weights to draw with of the newest whole checkpoint below a folder or URL.

    Raises:
        TrainingError: there is none.
    """
    found = Checkpoints(str(url)).newest()
    if found is None:
        raise TrainingError(f"There is no checkpoint below {url}", remedy="run the same command again")
    return found.load(MODEL)


def _fault(folder: Path) -> str:
    """What is wrong with a checkpoint's files; nothing when they are whole."""
    fs = LocalFileSystem()
    for name, record in json.loads((folder / MARK).read_text())["files"].items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if record_of(fs, str(folder / name)).model_dump() != record:
            return f"{name} does not match its checksum"
    return ""


def _hashed(chunks: Iterator[bytes | memoryview], sha: Any) -> Iterator[bytes]:
    for chunk in chunks:
        sha.update(chunk)
        yield cast(bytes, chunk)


def _name(step: int) -> str:
    return f"step-{step:08d}"
