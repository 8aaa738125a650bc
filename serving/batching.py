"""The pictures of one model and one size that are being drawn: taken on together, handed over one by one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from components.models.families import ImageGenerator
from components.models.stepping import Drawing
from serving.metrics import Metrics
from serving.profiling import Profile, Size, out_of_memory
from serving.tickets import Job, Preview

_log = logging.getLogger("ray.serve")
_Result = TypeVar("_Result")


@dataclass(eq=False)
class Piece:
    """One picture of an order, in a batch."""

    job: Job
    index: int
    drawing: Drawing | None = None  # None until its prompt has been read

    @property
    def underway(self) -> Drawing:
        """The drawing, once its prompt has been read."""
        assert self.drawing is not None, "its prompt has been read"
        return self.drawing

    @property
    def steps_left(self) -> int:
        """Steps to be done."""
        return self.job.steps - (self.drawing.step if self.drawing else 0)


class Batch:
    """Pictures of one model and size, each at a step of its own. One thread draws; others may read ``pieces``."""

    def __init__(self, generator: ImageGenerator, size: Size, profile: Profile, metrics: Metrics) -> None:
        self.generator, self.size, self.profile, self._metrics = generator, size, profile, metrics
        self.pieces: list[Piece] = []

    @property
    def rows(self) -> int:
        """Rows of the network's batch at the next step."""
        return sum(piece.job.rows for piece in self.pieces)

    def fits(self, job: Job, most: int) -> bool:
        """Whether one more picture is worth the next step, ``most`` pictures at most."""
        room = len(self.pieces) < most and self.rows + job.rows <= self.profile.limit(self.size)
        return room or not self.pieces

    def add(self, job: Job, index: int) -> None:
        """Let a picture join at the next step."""
        self.pieces.append(Piece(job, index))

    def clear(self) -> None:
        """Let go of pictures whose order was taken back, or failed."""
        self.pieces = [piece for piece in self.pieces if not piece.job.future.done()]

    def turn(self) -> None:
        """One step: those that joined are begun, those that are done handed over."""
        self._begin([piece for piece in self.pieces if not piece.drawing])
        self._step([piece for piece in self.pieces if piece.drawing])
        alive = [piece for piece in self.pieces if piece.drawing and not piece.job.future.done()]
        self._show([piece for piece in alive if piece.underway.step in piece.job.preview_at])
        self._finish([piece for piece in alive if piece.underway.done])

    def _begin(self, pieces: list[Piece]) -> None:
        def begin(some: list[Piece]) -> list[Drawing]:
            for job in (piece.job for piece in some if not piece.index):
                # asked here, because a tokenizer must not be used by two threads at once
                job.truncated = self.generator.truncated(job.order.prompt)
                job.negative_truncated = self.generator.truncated(job.order.negative_prompt or "")
            return self.generator.begin([piece.job.picture(piece.index) for piece in some])

        for piece, drawing in self._together(pieces, begin):
            piece.drawing = drawing

    def _step(self, pieces: list[Piece]) -> None:
        def step(some: list[Piece]) -> list[None]:
            self.generator.step([piece.underway for piece in some])
            return [None] * len(some)

        started = time.monotonic()
        done = [each for part in self._parts(pieces) for each in self._together(part, step)]
        for piece, _ in done:
            piece.job.stepped += 1
        if done:
            self._metrics.step_seconds.observe(time.monotonic() - started)
            self._metrics.batch.observe(len(done))

    def _parts(self, pieces: list[Piece]) -> list[list[Piece]]:
        """All of them, or parts where memory did not suffice for so many at an earlier step."""
        parts: list[list[Piece]] = [[]]
        limit, rows = self.profile.limit(self.size), 0
        for piece in pieces:
            if parts[-1] and rows + piece.job.rows > limit:
                parts.append([])
                rows = 0
            parts[-1].append(piece)
            rows += piece.job.rows
        return parts

    def _show(self, due: list[Piece]) -> None:
        """Make previews, where somebody takes them."""
        due = [piece for piece in due if piece.job.on_preview]
        if not due:
            return
        try:
            pixels = self.generator.preview([piece.underway for piece in due])
            for piece, each in zip(due, pixels, strict=True):
                if take := piece.job.on_preview:
                    take(Preview(piece.index, piece.underway.step, piece.underway.steps, each))
        except Exception:  # the pictures themselves are well
            _log.exception("A preview failed; %d orders get no more of them", len({piece.job for piece in due}))
            for piece in due:
                piece.job.on_preview = None

    def _finish(self, ready: list[Piece]) -> None:
        width, height = self.size

        def finish(some: list[Piece]) -> list[np.ndarray]:
            pixels = self.generator.finish([piece.underway for piece in some])
            if pixels.shape != (len(some), height, width, 3) or pixels.dtype != np.uint8:
                expected = f"expected uint8 {(len(some), height, width, 3)}"
                raise ValueError(f"the model gave {pixels.dtype} {pixels.shape}, {expected}")
            return list(pixels)

        for piece, pixels in self._together(ready, finish):
            self._metrics.images.labels(piece.job.served.version).inc()
            piece.job.keep(piece.index, pixels)
        if ready:
            self.pieces = [piece for piece in self.pieces if piece not in ready]

    def _together(
        self, pieces: list[Piece], call: Callable[[list[Piece]], Sequence[_Result]]
    ) -> list[tuple[Piece, _Result]]:
        """What ``call`` gives for each of the pieces.

        Where it fails, it is called for each half: what is at fault is found, its order fails, and its neighbours get
        what they asked for.
        """
        pieces = [piece for piece in pieces if not piece.job.future.done()]
        if not pieces:
            return []
        try:
            return list(zip(pieces, call(pieces), strict=True))
        except Exception as error:
            if len(pieces) == 1:
                _log.exception("An order failed")
                pieces[0].job.fail(error)
                return []
            _log.warning("%d pictures failed together (%r); trying them in halves", len(pieces), error)
            if out_of_memory(error):
                self.profile.shrink(self.size, sum(piece.job.rows for piece in pieces) // 2)
        half = len(pieces) // 2
        return self._together(pieces[:half], call) + self._together(pieces[half:], call)
