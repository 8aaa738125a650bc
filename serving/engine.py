"""From a queue of orders to pictures, in batches, on one thread of its own. Knows neither HTTP nor Ray.

An order is bound to the model that was served when it came in. A new model takes the orders that come after;
the old one finishes its own and is then let go: nothing is dropped, and no order meets a model it was not
checked for.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.models.families import ImageGenerator
from serving.metrics import Metrics
from serving.schemas import Lora, Order

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Served:
    """A loaded model. ``loaded_at`` is in seconds since 1970."""

    version: str
    generator: ImageGenerator
    digest: str = ""
    loaded_at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Drawn:
    """The pictures of one order, uint8 (N, H, W, 3), and the model that drew them."""

    pixels: NDArray[np.uint8]
    truncated: bool  # the prompt was cut
    served: Served
    negative_truncated: bool = False


class NoModel(Exception):
    """No model is loaded yet."""


class QueueFull(Exception):
    """Too many orders wait; ``retry_after`` is the predicted time, in seconds, until one place is free."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(retry_after)


class EngineClosed(Exception):
    """The engine is being stopped and takes no more orders."""


@dataclass
class _Job:
    order: Order
    served: Served
    deadline: float
    future: Future[Drawn] = field(default_factory=Future)
    begun: int = 0  # pictures handed to a batch
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    truncated: bool = False
    negative_truncated: bool = False

    @property
    def key(self) -> tuple[int, int, float, str]:
        """Orders with equal keys can be drawn in one batch."""
        style = self.order.style.digest if self.order.style else ""
        return id(self.served), self.order.steps, self.order.guidance_scale, style


@dataclass(frozen=True)
class _Part:
    """Pictures ``start`` to ``stop`` of a job, in one batch."""

    job: _Job
    start: int
    stop: int


class Engine:
    """Draws orders with the served model.

    Args:
        max_batch: pictures drawn together at most.
        max_queue: orders that may wait; one more raises :class:`QueueFull`.
        timeout_s: an order that has not been begun after this long fails with ``TimeoutError``.
    """

    def __init__(self, *, max_batch: int, max_queue: int, metrics: Metrics, timeout_s: float = 300.0) -> None:
        self._max_batch, self._max_queue, self._timeout = max_batch, max_queue, timeout_s
        self._metrics = metrics
        self._queue: list[_Job] = []
        self._changed = threading.Condition()
        self._served: Served | None = None
        self._closing = False
        self._seconds_per_image = 0.1  # running mean, for the prediction of waiting times
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def served(self) -> Served | None:
        """The model that the next order is bound to."""
        return self._served

    @property
    def alive(self) -> bool:
        """Whether the drawing thread runs."""
        return self._thread.is_alive()

    def swap(self, served: Served) -> None:
        """Bind the orders that come from now on to ``served``."""
        with self._changed:
            self._served = served
        self._metrics.serving(served.version)

    def submit(self, order: Order, served: Served | None = None) -> Future[Drawn]:
        """Queue an order for ``served`` (default: the current model). Cancelling the future takes it back.

        Raises:
            NoModel, QueueFull, EngineClosed: at once, instead of a future.
        """
        with self._changed:
            served = served or self._served
            if self._closing:
                raise EngineClosed
            if served is None:
                raise NoModel
            self._forget_cancelled()
            if len(self._queue) >= self._max_queue:
                raise QueueFull(self.wait_estimate())
            job = _Job(order, served, deadline=time.monotonic() + self._timeout)
            self._queue.append(job)
            self._metrics.waiting.set(len(self._queue))
            self._changed.notify()
        return job.future

    def wait_estimate(self) -> int:
        """Seconds until the orders now waiting are drawn, at the recent speed; at least 1."""
        images = sum(len(job.order.seeds) - job.begun for job in self._queue)
        return max(1, math.ceil(images * self._seconds_per_image))

    def close(self, timeout_s: float = 10.0) -> None:
        """Take no more orders, draw those that wait, and stop; what is left after ``timeout_s`` fails."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            for job in self._queue:
                _fail(job, EngineClosed())
            self._queue.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                batch = self._take()
                if not batch and self._closing:
                    return
            if batch:
                self._draw(batch)
            del batch  # so that an old model is not held by this frame while waiting

    def _take(self) -> list[_Part]:
        """The next batch: the oldest order and those that can be drawn with it. Holds the lock."""
        self._forget_cancelled()
        now = time.monotonic()
        for job in [job for job in self._queue if job.deadline < now]:
            self._queue.remove(job)
            _fail(job, TimeoutError())
        batch: list[_Part] = []
        room = self._max_batch
        for job in list(self._queue):
            if not room:
                break
            if batch and job.key != batch[0].job.key:
                continue
            stop = min(len(job.order.seeds), job.begun + room)
            batch.append(_Part(job, job.begun, stop))
            room -= stop - job.begun
            job.begun = stop
            if stop == len(job.order.seeds):
                self._queue.remove(job)
        self._metrics.waiting.set(len(self._queue))
        return batch

    def _draw(self, batch: list[_Part]) -> None:
        started = time.monotonic()
        try:
            pixels = _generate(batch)
        except Exception as error:
            if len(batch) > 1:  # find the order that fails, so that its neighbours get their pictures
                _log.warning("A batch of %d orders failed (%r); drawing them one by one", len(batch), error)
                for part in batch:
                    self._draw([part])
                return
            _log.exception("An order failed")
            self._drop(batch[0].job, error)
            return
        self._metrics.batch.observe(len(pixels))
        self._metrics.images.labels(batch[0].job.served.version).inc(len(pixels))
        each = (time.monotonic() - started) / len(pixels)
        self._seconds_per_image += 0.2 * (each - self._seconds_per_image)
        at = 0
        for part in batch:
            part.job.pixels.append(pixels[at : at + part.stop - part.start])
            at += part.stop - part.start
            if part.stop == len(part.job.order.seeds):
                job = part.job
                with contextlib.suppress(InvalidStateError):  # cancelled while it was drawn
                    whole = np.concatenate(job.pixels)
                    job.future.set_result(Drawn(whole, job.truncated, job.served, job.negative_truncated))

    def _drop(self, job: _Job, error: Exception) -> None:
        with self._changed:
            if job in self._queue:  # its remaining pictures
                self._queue.remove(job)
        _fail(job, error)

    def _forget_cancelled(self) -> None:
        self._queue = [job for job in self._queue if not job.future.cancelled()]


def _generate(batch: list[_Part]) -> NDArray[np.uint8]:
    """One picture for every seed of ``batch``, whose parts share model, style, steps and guidance."""
    first = batch[0].job
    generator, size = first.served.generator, first.served.generator.image_size
    prompts: list[str] = []
    negatives: list[str] = []
    seeds: list[int] = []
    for part in batch:
        order = part.job.order
        # asked here, because a tokenizer must not be used by two threads at once
        part.job.truncated = generator.truncated(order.prompt)
        part.job.negative_truncated = generator.truncated(order.negative_prompt or "")
        prompts += [order.prompt] * (part.stop - part.start)
        negatives += [order.negative_prompt or ""] * (part.stop - part.start)
        seeds += order.seeds[part.start : part.stop]
    with _styled(generator, first.order.style):
        pixels = generator.generate(
            prompts,
            seeds,
            steps=first.order.steps,
            guidance_scale=first.order.guidance_scale,
            negative_prompts=negatives if any(negatives) else None,
        )
    if pixels.shape != (len(seeds), size, size, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"the model gave {pixels.dtype} {pixels.shape}, expected uint8 {(len(seeds), size, size, 3)}")
    return pixels


def _styled(generator: Any, style: Lora | None) -> contextlib.AbstractContextManager[None]:
    """The style's adapter is in effect inside; without one the model is exactly its own."""
    if style is None:
        return contextlib.nullcontext()
    on: contextlib.AbstractContextManager[None] = generator.styled(style.digest, style.folder)
    return on


def _fail(job: _Job, error: Exception) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled: nobody waits for the reason
        job.future.set_exception(error)
