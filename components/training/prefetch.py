"""Batches made ready on a background thread while the model computes; which batches there are does not change."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor

from components.training.processor import compute_alone

Batch = dict[str, Tensor]
_AHEAD = 2  # batches that wait to be taken


class Batches:
    """The batches of steps ``first`` .. ``last - 1``, made in that order by one thread, a few steps ahead.

    One thread, because a batch's random numbers and a task's state must come out as they would without it.

    Args:
        make: the batch of a step.
        pin: for a GPU: copy batches to pinned memory, from which it fetches them while it computes. Without one the
            thread shares the cores with the training, and computes on one thread.
    """

    def __init__(self, make: Callable[[int], Batch], first: int, last: int, pin: bool = False) -> None:
        self._make, self._steps, self._pin = make, range(first, last), pin
        self._ready: queue.Queue[tuple[int, Batch | BaseException]] = queue.Queue(_AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def __enter__(self) -> Batches:
        # torch takes the last thread's number of threads for one that has not computed yet: this one asks before
        torch.get_num_threads()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        while self._thread.is_alive():  # it may be waiting for room
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def take(self, step: int) -> Batch:
        """The batch of ``step``; steps must be taken in order.

        Raises:
            whatever making it raised.
        """
        found, batch = self._ready.get()
        if isinstance(batch, BaseException):
            raise batch
        assert found == step, f"batch {found} is next, not {step}"
        return batch

    def _run(self) -> None:
        if not self._pin:
            compute_alone()
        for step in self._steps:
            try:
                batch: Batch | BaseException = self._make(step)
                if self._pin and isinstance(batch, dict):
                    batch = {key: v.pin_memory() if v.device.type == "cpu" else v for key, v in batch.items()}
            except BaseException as error:  # raised again by take, on the thread that trains
                batch = error
            while not self._ended.is_set():
                try:
                    self._ready.put((step, batch), timeout=0.2)
                    break
                except queue.Full:
                    continue
            if self._ended.is_set() or isinstance(batch, BaseException):
                return
