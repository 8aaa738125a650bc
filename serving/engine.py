"""From a queue of orders to pictures, in batches that change between steps, on one thread of its own. Knows neither
HTTP nor Ray.

Every picture is drawn step by step, each at a step of its own. Before every step what is done, taken back or too late
leaves the batch, and what waits joins it, as far as the warm-up found more pictures worth the step.

An order is bound to the model that was served when it came in. A new model takes the orders that come after;
the old one finishes its own, in turn with the new one, and is then let go: nothing is dropped, and no order meets a
model it was not checked for.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from components.models.families import ImageGenerator
from serving.batching import Batch
from serving.loading import aside
from serving.metrics import Metrics
from serving.prediction import predict
from serving.profiling import Profile, Size, measure
from serving.queueing import FairQueue
from serving.schemas import Order
from serving.tickets import Drawn, EngineClosed, Job, LaneKey, NoModel, Preview, Progress, QueueFull, Served, Ticket

__all__ = ["Drawn", "Engine", "EngineClosed", "NoModel", "Preview", "Progress", "QueueFull", "Served", "Ticket"]
_log = logging.getLogger("ray.serve")
_PREDICTED_S = 0.25  # a prediction is good for so long


class Engine:
    """Draws orders with the served model.

    Args:
        max_batch: pictures drawn together at most; a model's warm-up may find that fewer are worth it.
        max_queue: orders that may wait; one more raises :class:`QueueFull`.
        timeout_s: an order that is not done after this long fails with ``TimeoutError``.
        max_wait_s: an order that is predicted to wait longer raises :class:`QueueFull`; None: however long.
        warm_up_s: time for measuring a model's batches; 0: nothing is measured, and batches are as large as may be.
        sizes: that are measured besides a model's own, as ``"WIDTHxHEIGHT"``.
    """

    def __init__(
        self, *, max_batch: int, max_queue: int, metrics: Metrics, timeout_s: float = 300.0,
        max_wait_s: float | None = None, warm_up_s: float = 2.0, sizes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._max_batch, self._max_queue, self._timeout, self._max_wait = max_batch, max_queue, timeout_s, max_wait_s
        self._warm_up, self._sizes, self._metrics = warm_up_s, sizes, metrics
        self._queue = FairQueue()
        self._batches: dict[LaneKey, Batch] = {}
        self._profiles: weakref.WeakKeyDictionary[ImageGenerator, Profile] = weakref.WeakKeyDictionary()
        self._changed = threading.Condition()
        self._preparing = threading.Lock()
        self._served: Served | None = None
        self._closing = False
        self._pace = 1.0  # seconds from step to step by those of the warm-up's steps
        self._predicted_at, self._wait = -math.inf, 0.0
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

    @property
    def waiting(self) -> int:
        """Orders of which some picture waits."""
        with self._changed:
            return len(self._queue)

    @property
    def busy(self) -> int:
        """Pictures being drawn."""
        with self._changed:
            return sum(len(batch.pieces) for batch in self._batches.values())

    def prepare(self, served: Served) -> None:
        """Measure the batches of a model before it is given orders; takes ``warm_up_s``, once a model."""
        generator = served.generator
        with self._preparing:
            if generator in self._profiles:
                return
            own = (generator.image_size, generator.image_size)
            sizes = [own, *(size for size in self._others(generator) if size != own)] if self._warm_up else []
            most, each = self._most(generator), self._warm_up / max(1, len(sizes))
            measured = aside(lambda: {size: measure(generator, size, most, each) for size in sizes})
            profile = Profile(measured, own, most)
            with self._changed:
                self._profiles[generator] = profile
        for size, found in measured.items():
            said = ", ".join(f"{rows}: {1000 * seconds:.1f}" for rows, seconds in sorted(found.items()))
            _log.info("Version %s, %dx%d: ms a step by rows %s; at most %d rows", served.version, *size, said,
                      profile.limit(size))  # fmt: skip

    def swap(self, served: Served) -> None:
        """Bind the orders that come from now on to ``served``, which is measured first."""
        self.prepare(served)
        with self._changed:
            self._served = served
        self._metrics.serving(served.version)

    def submit(
        self, order: Order, served: Served | None = None, *, owner: str = "", timeout_s: float | None = None,
        partial_images: int = 0, on_preview: Callable[[Preview], None] | None = None,
    ) -> Ticket:  # fmt: skip
        """Queue an order.

        Args:
            served: the model to draw with; default: the current one. One that was never current is prepared first,
                see :meth:`prepare`.
            owner: whom the order is for: owners get the same share of the work.
            timeout_s: seconds in which the order must be done; default: the engine's.
            partial_images: previews of every picture, evenly over its steps.
            on_preview: takes them, on the engine's thread, so it must be quick. Where it fails, no more are made.

        Raises:
            NoModel, QueueFull, EngineClosed: at once, instead of a ticket.
        """
        with self._changed:
            served = served or self._served
            if self._closing or not self.alive:
                raise EngineClosed
            if served is None:
                raise NoModel
            self.require_room()
            deadline = time.monotonic() + (self._timeout if timeout_s is None else timeout_s)
            job = Job(order, served, owner, deadline, partial_images, on_preview)
            self._queue.put(job)
            if self._max_wait is not None:
                self._predict(job)
                if job.starts - time.monotonic() > self._max_wait:
                    self._queue.drop(lambda other: other is job)
                    self._predicted_at = -math.inf
                    raise QueueFull(self.wait_estimate())
            self._metrics.waiting.set(len(self._queue))
            self._changed.notify()
        return Ticket(job, self._predict)

    def require_room(self) -> None:
        """Raises :class:`QueueFull` where :meth:`submit` would: asked before work goes into what has no place."""
        with self._changed:
            if len(self._queue) >= self._max_queue:
                self._queue.drop(lambda job: job.future.done())
            if len(self._queue) >= self._max_queue:
                retry_after = self.wait_estimate()
                raise QueueFull(retry_after, self._wait / max(1, len(self._queue)))

    def wait_estimate(self) -> int:
        """Seconds until the orders now waiting are begun, predicted from their steps and the pace; at least 1."""
        with self._changed:
            self._predict()
            return max(1, math.ceil(self._wait))

    def close(self, timeout_s: float = 10.0) -> None:
        """Take no more orders, draw those that wait, and stop; what is left after ``timeout_s`` fails."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        self._abandon()

    def _abandon(self) -> None:
        with self._changed:
            self._closing = True
            left = [*self._queue, *(piece.job for batch in self._batches.values() for piece in batch.pieces)]
            self._queue.drop(lambda job: True)
            self._batches.clear()
        for job in left:
            job.fail(EngineClosed())

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        finally:  # also where the engine itself is at fault: nobody waits in vain
            self._abandon()

    def _turn(self) -> bool:
        """One step of every batch, and what comes before and after it. False when there is nothing left to do.

        All that is held of a model is held by the frames of this call, so that an old model is let go while waiting.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._queue) or self._batches or self._closing)
            self._clear()
            self._admit()
            batches = list(self._batches.values())
            self._metrics.waiting.set(len(self._queue))
            self._metrics.drawing.set(sum(len(batch.pieces) for batch in batches))
            if not batches:
                return not self._closing
        started = time.monotonic()
        expected = sum(batch.profile.seconds(batch.size, batch.rows) for batch in batches)
        for batch in batches:
            batch.turn()
        self._pace += 0.1 * ((time.monotonic() - started) / expected - self._pace)
        return True

    def _clear(self) -> None:
        """Take out what is done, was taken back, failed or is too late. Holds the lock."""
        now = time.monotonic()
        for job in [*self._queue, *(piece.job for batch in self._batches.values() for piece in batch.pieces)]:
            if job.deadline < now:
                job.fail(TimeoutError())
        self._queue.drop(lambda job: job.future.done())
        for lane, batch in list(self._batches.items()):
            batch.clear()
            if not batch.pieces:
                del self._batches[lane]

    def _admit(self) -> None:
        """Put pictures that wait into batches that have room for them. Holds the lock."""
        while (taken := self._queue.take(self._fits)) is not None:
            job, index = taken
            if job.lane not in self._batches:
                generator = job.served.generator
                self._batches[job.lane] = Batch(generator, job.size, self._profile(generator), self._metrics)
            self._batches[job.lane].add(job, index)
            if index == 0:
                self._metrics.queue_seconds.observe(time.monotonic() - job.submitted)

    def _fits(self, job: Job) -> bool:
        batch = self._batches.get(job.lane)
        return batch is None or batch.fits(job, self._max_batch)

    def _profile(self, generator: ImageGenerator) -> Profile:
        """Holds the lock."""
        if generator not in self._profiles:  # an order came for a model that nobody prepared
            own = (generator.image_size, generator.image_size)
            self._profiles[generator] = Profile({}, own, self._most(generator))
        return self._profiles[generator]

    def _most(self, generator: ImageGenerator) -> int:
        """Rows of a step at most."""
        return self._max_batch * (2 if generator.uses_steps else 1)

    def _others(self, generator: ImageGenerator) -> list[Size]:
        """The sizes besides its own that a model is asked for, and can draw."""
        sizes = [(int(width), int(height)) for width, _, height in (size.partition("x") for size in self._sizes)]
        step = generator.granularity
        return [size for size in sizes if step and not any(side % step for side in size)]

    def _predict(self, job: Job | None = None) -> None:
        """Predict when every order starts and ends, unless that was done a moment ago and ``job`` was in it."""
        with self._changed:
            now = time.monotonic()
            if now - self._predicted_at < _PREDICTED_S and not (job and math.isinf(job.ends)):
                return
            waiting = list(self._queue.order())
            running = [(piece.job, piece.steps_left) for batch in self._batches.values() for piece in batch.pieces]
            every = {each.lane: each.served.generator for each in (*waiting, *(one for one, _ in running))}
            profiles = {lane: self._profile(generator) for lane, generator in every.items()}
            self._wait = predict(waiting, running, profiles, self._max_batch, self._pace, now)
            self._predicted_at = now
