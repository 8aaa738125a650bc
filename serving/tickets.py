"""What is given to the engine and what comes back: orders taken in, previews, progress and pictures."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from components.models.families import ImageGenerator
from components.models.stepping import Picture, Style
from serving.schemas import Order


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


@dataclass(frozen=True)
class Preview:
    """What picture ``image`` of an order (its place in ``order.seeds``) is expected to become, after ``step`` of
    ``steps`` steps: uint8 (H, W, 3)."""

    image: int
    step: int
    steps: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Progress:
    """Where an order is.

    Args:
        ahead: orders that will be begun before it; 0 once it is begun.
        step, steps: of its pictures on average, rounded down.
        seconds_left: predicted, until its pictures are there.
    """

    state: Literal["queued", "drawing", "done"]
    ahead: int
    step: int
    steps: int
    seconds_left: float


class NoModel(Exception):
    """No model is loaded yet."""


class QueueFull(Exception):
    """Too many orders wait, or too long; ``retry_after`` is the predicted time, in seconds, until they are begun.

    Where the queue itself is full, for whoever asks, ``place_s`` is the predicted time until the next place comes free.
    """

    def __init__(self, retry_after: int, place_s: float | None = None) -> None:
        self.retry_after, self.place_s = retry_after, place_s
        super().__init__(retry_after)


class EngineClosed(Exception):
    """The engine is being stopped and takes no more orders."""


LaneKey = tuple[int, int, int]  # of orders that are drawn together: the model's id, width, height


@dataclass(eq=False)
class Job:
    """An order that was taken in. ``deadline`` and the predicted ``starts`` and ``ends`` are on the monotonic clock."""

    order: Order
    served: Served
    owner: str
    deadline: float
    partial_images: int = 0
    on_preview: Callable[[Preview], None] | None = None
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Drawn] = field(default_factory=Future)
    begun: int = 0  # pictures handed to a batch
    stepped: int = 0  # steps done, of all pictures together
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # pictures that are done, by their place
    truncated: bool = False
    negative_truncated: bool = False
    ahead: int = 0
    starts: float = 0.0
    ends: float = math.inf  # not predicted yet

    def __post_init__(self) -> None:
        own, order = self.served.generator.image_size, self.order
        self.size = (order.width or own, order.height or own)  # width and height
        uses_steps = self.served.generator.uses_steps
        self.steps = order.steps if uses_steps else 1
        self.rows = 2 if uses_steps and order.guidance_scale > 1 else 1  # of the network's batch, a picture
        self.lane: LaneKey = (id(self.served.generator), *self.size)
        wanted = self.partial_images + 1
        self.preview_at = {round(self.steps * k / wanted) for k in range(1, wanted)} - {0, self.steps}

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.order.seeds)

    @property
    def work(self) -> int:
        """What one picture costs: steps x rows x pixels."""
        return self.steps * self.rows * self.size[0] * self.size[1]

    def picture(self, index: int) -> Picture:
        """What the model is asked for, of the order's picture ``index``."""
        order = self.order
        return Picture(
            order.prompt, order.seeds[index], order.steps, order.guidance_scale, order.negative_prompt or "",
            order.sampler, order.width, order.height,
            Style(order.style.digest, order.style.folder) if order.style else None,
        )  # fmt: skip

    def fail(self, error: Exception) -> None:
        """Tell whoever waits, unless the order is done or was taken back."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def keep(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Picture ``index`` is done; with the last one, the order is."""
        self.pixels[index] = pixels
        if len(self.pixels) == self.count:
            whole = np.stack([self.pixels[i] for i in range(self.count)])
            with contextlib.suppress(InvalidStateError):  # taken back while it was drawn
                self.future.set_result(Drawn(whole, self.truncated, self.served, self.negative_truncated))


class Ticket:
    """What :meth:`serving.engine.Engine.submit` returns: the pictures to come. May be used by several threads.

    ``future`` gives the pictures. Cancelling it, or :meth:`cancel`, takes the order back: what waits is not begun, and
    what is being drawn leaves the batch before the next step.
    """

    def __init__(self, job: Job, predict: Callable[[Job], None]) -> None:
        self._job, self._predict = job, predict
        self.future = job.future

    def cancel(self) -> bool:
        """Take the order back. False when it is done already."""
        return self.future.cancel()

    def progress(self) -> Progress:
        """Where the order is, and how long it will take."""
        job = self._job
        if self.future.done():
            return Progress("done", 0, job.steps, job.steps, 0.0)
        self._predict(job)
        left = max(0.0, job.ends - time.monotonic())
        step = min(job.steps, job.stepped // job.count)
        return Progress("drawing" if job.begun else "queued", 0 if job.begun else job.ahead, step, job.steps, left)
